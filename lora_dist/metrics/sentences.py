"""Scores of each instance on its own: the columns that the official script's --sentence-level writes.

| column | what it is |
|---|---|
| BLEU | BLEU-4 of a set of this one instance; 1e-15 matches where there is none, so that it is often next to 0 |
| sentBLEU | the same with 1 added to matches and totals of every n, which makes it useful for one sentence |
| NIST | NIST-5 of a set of this one instance, so the information of n-grams comes from its references alone |
| METEOR | METEOR of the output's best alignment |
| ROUGE_L | ROUGE_L; the score of the set is the mean of this column |
| CIDEr | CIDEr with the document frequencies of the whole set, whose score is the mean of this column |

BLEU and NIST are those of the script's Python program whatever the variant of the set's scores, as in the script. Where
that divides by zero, which is NIST of an output of fewer than five tokens, the script stops; here the value is NaN.
"""

from collections.abc import Sequence

import numpy as np

from lora_dist.errors import UserError
from lora_dist.metrics import meteor, mteval
from lora_dist.metrics.ngrams import Floats
from lora_dist.metrics.suite import Measurements


def sentence_scores(
    references: Sequence[Sequence[str]], outputs: Sequence[str], measured: Measurements
) -> dict[str, Floats]:
    """The columns above, each with one number an instance.

    Args:
        references: One or more references an output.
        outputs: The outputs.
        measured: What `metrics.measure` returned for them.
    """
    # One set for each instance: the information of n-grams must not come from the references of others.
    alone = [mteval.statistics([group], [output], "python") for group, output in zip(references, outputs, strict=True)]
    return {
        "BLEU": np.array([mteval.bleu(counts, "python") for counts in alone]),
        "sentBLEU": np.array([mteval.bleu(counts, "python", smoothing=1.0) for counts in alone]),
        "NIST": np.array([_nist(counts) for counts in alone]),
        "METEOR": meteor.sentence_scores(measured.meteor),
        "ROUGE_L": measured.rouge,
        "CIDEr": measured.cider,
    }


def _nist(counts: mteval.Statistics) -> float:
    try:
        return mteval.nist(counts, "python")
    except UserError:  # too short for it
        return float("nan")
