"""The five metrics of the E2E NLG Challenge, with the values that its official script prints.

`score` computes the corpus scores. `compute_statistics` computes their per-instance statistics, from which sentence
scores and bootstrap resamples are derived.
"""

import importlib.metadata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

import lora_dist
from lora_dist.errors import UserError
from lora_dist.metrics import cider, java, meteor, mteval, paraphrases, ptb, rouge

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
E2E_NLG = Path(__file__).resolve().parent / "e2e_nlg"
"""Folder of the same metrics as a metric of Hugging Face's evaluate: `evaluate.load(str(E2E_NLG))`."""


@dataclass(frozen=True)
class CorpusStatistics:
    """Per-instance statistics of the five metrics; every array has one row per instance."""

    variant: mteval.Variant
    """Variant of BLEU and NIST."""
    mteval: mteval.NgramStatistics
    """Sufficient statistics of BLEU and NIST."""
    meteor: NDArray[np.float64]
    """Sufficient statistics of METEOR, shape (instances, 23) (see `meteor.alignment_statistics`)."""
    rouge: NDArray[np.float64]
    """ROUGE_L of each output, 0 to 1, shape (instances,)."""
    cider: NDArray[np.float64]
    """CIDEr of each output, 0 to 10, shape (instances,), with the document frequencies of the whole set."""

    def scores(self, indices: NDArray[np.intp] | None = None) -> dict[str, float]:
        """Compute the five scores of the instances `indices`, which may repeat; None means all instances.

        The n-gram weights of NIST and CIDEr are those of the whole set, also for a subset.

        Raises:
            UserError: if NIST is undefined (see `mteval.corpus_nist`).
        """
        chosen = np.arange(len(self.rouge)) if indices is None else indices
        ngram_statistics = self.mteval.take(chosen)
        values = (
            mteval.corpus_bleu(ngram_statistics, self.variant),
            mteval.corpus_nist(ngram_statistics, self.variant),
            meteor.corpus_meteor(self.meteor[chosen]),
            float(self.rouge[chosen].mean()),
            float(self.cider[chosen].mean()),
        )
        return dict(zip(METRICS, values, strict=True))


def score(
    references: Sequence[Sequence[str]], outputs: Sequence[str], mteval: mteval.Variant = "perl"
) -> dict[str, float]:
    """Compute the five scores in the official order, unrounded: NIST in bits, CIDEr 0 to 10, the others 0 to 1.

    Args:
        references: One or more references per output.
        outputs: The outputs.
        mteval: The variant of BLEU and NIST: perl is what the official script prints by default, python what it
            prints with -p.

    Raises:
        UserError: if the numbers of outputs and references differ, a metric is undefined for them, or Java fails.
    """
    return compute_statistics(references, outputs, mteval).scores()


def compute_statistics(
    references: Sequence[Sequence[str]], outputs: Sequence[str], variant: mteval.Variant = "perl"
) -> CorpusStatistics:
    """Compute the per-instance statistics of the five metrics; arguments and errors are those of `score`."""
    _check_inputs(references, outputs, variant)
    texts = list(chain.from_iterable(references))
    with ThreadPoolExecutor(3) as pool:
        # Java takes longest, so it starts first. This thread computes what does not depend on it in the meantime.
        tokenizing = pool.submit(ptb.ptb_tokenize, texts), pool.submit(ptb.ptb_tokenize, outputs)
        table = pool.submit(paraphrases.decompress_table, meteor.paraphrase_table_path())
        ngram_statistics = mteval.ngram_statistics(references, outputs, variant)
        flat_references, tokenized_outputs = (future.result() for future in tokenizing)
        remaining = iter(flat_references)
        tokenized_references = [list(islice(remaining, len(group))) for group in references]
        filtered = paraphrases.filter_paraphrases(table.result(), flat_references, tokenized_outputs)
        aligning = pool.submit(meteor.alignment_statistics, tokenized_references, tokenized_outputs, filtered)
        rouge_l = rouge.sentence_rouge_l(tokenized_references, tokenized_outputs)
        ciders = cider.sentence_cider(tokenized_references, tokenized_outputs)
        return CorpusStatistics(variant, ngram_statistics, aligning.result(), rouge_l, ciders)


def _check_inputs(references: Sequence[Sequence[str]], outputs: Sequence[str], variant: str) -> None:
    if variant not in get_args(mteval.Variant):
        raise UserError(f"mteval is {variant!r}: choose perl or python")
    if len(references) != len(outputs):
        raise UserError(
            f"there are {len(outputs)} outputs but references for {len(references)}: pass one output per instance"
        )
    if not outputs:
        raise UserError("outputs is empty, so there is nothing to score: pass one output per instance")
    for number, (group, output) in enumerate(zip(references, outputs, strict=True), start=1):
        if isinstance(group, str) or not group:
            raise UserError(f"instance {number} has no list of references: pass a list of one or more references")
        if not all(isinstance(text, str) for text in (output, *group)):
            raise UserError(f"instance {number} has an output or a reference that is not a string: pass strings")


def signature(variant: mteval.Variant = "perl") -> dict[str, str]:
    """Return which program, version and settings compute each score.

    Scores are comparable only if their signatures are equal.

    Raises:
        UserError: if there is no working Java.
    """
    coco = f"pycocoevalcap {importlib.metadata.version('pycocoevalcap')}"
    mteval_name = {"perl": "mteval-v13a-sig.pl", "python": "pymteval.py (-p)"}[variant]
    return {
        "BLEU": f"{mteval_name}, case-insensitive",
        "NIST": f"{mteval_name}, case-insensitive",
        "METEOR": f"METEOR 1.5, -l en -norm, jar of {coco}",
        "ROUGE_L": "coco-caption, beta 1.2",
        "CIDEr": "coco-caption, n 4, sigma 6",
        "tokenizer": f"PTBTokenizer of Stanford CoreNLP 3.4.1, jar of {coco}",
        "java": java.java_version(java.find_java()),
        "lora_dist": lora_dist.__version__,
    }
