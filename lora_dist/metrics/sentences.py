"""Scores of each instance: the columns that the official script writes with --sentence-level.

| column | definition |
|---|---|
| BLEU | BLEU-4 of a corpus of this one instance; an n without match counts as 1e-15 matches, often close to 0 |
| sentBLEU | the same with 1 added to the matches and totals of every n, which is meaningful for one sentence |
| NIST | NIST-5 of a corpus of this one instance, so the information of n-grams comes from its own references only |
| METEOR | METEOR of the output's best alignment |
| ROUGE_L | ROUGE_L; the corpus score is the mean of this column |
| CIDEr | CIDEr with the document frequencies of the whole set; the corpus score is the mean of this column |

As in the script, BLEU and NIST are those of its Python program whatever the variant of the corpus scores. The script
fails where that program divides by zero: NIST of an output of fewer than 5 tokens. Here the value is NaN.
"""

from collections.abc import Sequence

import numpy as np

from lora_dist.errors import UserError
from lora_dist.metrics import meteor, mteval
from lora_dist.metrics.ngrams import Floats
from lora_dist.metrics.suite import CorpusStatistics


def sentence_scores(
    references: Sequence[Sequence[str]], outputs: Sequence[str], statistics: CorpusStatistics
) -> dict[str, Floats]:
    """Compute the columns above, each of shape (outputs,).

    Args:
        references: One or more references per output.
        outputs: The outputs.
        statistics: What `suite.compute_statistics` returned for them.
    """
    # Computed per instance, because the information of n-grams must not come from the references of other instances.
    per_instance = [
        mteval.ngram_statistics([group], [output], "python") for group, output in zip(references, outputs, strict=True)
    ]
    return {
        "BLEU": np.array([mteval.corpus_bleu(instance, "python") for instance in per_instance]),
        "sentBLEU": np.array([mteval.corpus_bleu(instance, "python", smoothing=1.0) for instance in per_instance]),
        "NIST": np.array([_nist_or_nan(instance) for instance in per_instance]),
        "METEOR": meteor.sentence_meteor(statistics.meteor),
        "ROUGE_L": statistics.rouge,
        "CIDEr": statistics.cider,
    }


def _nist_or_nan(statistics: mteval.NgramStatistics) -> float:
    try:
        return mteval.corpus_nist(statistics, "python")
    except UserError:  # the output is too short
        return float("nan")
