"""The five metrics of the E2E NLG Challenge, with the numbers its official script prints.

`score` gives them all; `measure` gives what they are made of, for scores by sentence and for resampling.
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
"""Folder of the same metrics for Hugging Face's evaluate: `evaluate.load(str(E2E_NLG))`."""


@dataclass(frozen=True)
class Measurements:
    """What the metrics need of each instance; everything has one row an instance."""

    variant: mteval.Variant
    """Of BLEU and NIST."""
    mteval: mteval.Statistics
    """For BLEU and NIST."""
    meteor: NDArray[np.float64]
    """METEOR's counts (see `meteor.statistics`)."""
    rouge: NDArray[np.float64]
    """ROUGE_L of each output, 0 to 1."""
    cider: NDArray[np.float64]
    """CIDEr of each output, 0 to 10, with the document frequencies of the whole set."""

    def scores(self, rows: NDArray[np.intp] | None = None) -> dict[str, float]:
        """The five scores of all instances, or of the instances `rows`, repetitions included (a bootstrap sample).

        The weights of n-grams in NIST and CIDEr are those of the whole set, also for a sample.

        Raises:
            UserError: if NIST is not defined (see `mteval.nist`).
        """
        chosen = np.arange(len(self.rouge)) if rows is None else rows
        counts = self.mteval.take(chosen)
        values = (
            mteval.bleu(counts, self.variant),
            mteval.nist(counts, self.variant),
            meteor.score(self.meteor[chosen]),
            float(self.rouge[chosen].mean()),
            float(self.cider[chosen].mean()),
        )
        return dict(zip(METRICS, values, strict=True))


def score(
    references: Sequence[Sequence[str]], outputs: Sequence[str], mteval: mteval.Variant = "perl"
) -> dict[str, float]:
    """The five scores in the official order, not rounded: NIST in bits, CIDEr 0 to 10, the others 0 to 1.

    Args:
        references: One or more references an output.
        outputs: The outputs.
        mteval: The variant of BLEU and NIST: perl is what the official script prints by default, python what it
            prints with -p.

    Raises:
        UserError: if the input does not fit together, a metric is not defined for it, or Java fails.
    """
    return measure(references, outputs, mteval).scores()


def measure(
    references: Sequence[Sequence[str]], outputs: Sequence[str], variant: mteval.Variant = "perl"
) -> Measurements:
    """What the five metrics need of each instance; the arguments and errors are those of `score`."""
    _check(references, outputs, variant)
    texts = list(chain.from_iterable(references))
    with ThreadPoolExecutor(3) as pool:
        # Java takes longest, so it starts first; here runs what it does not need or what it waits for.
        tokenizing = pool.submit(ptb.tokenize, texts), pool.submit(ptb.tokenize, outputs)
        table = pool.submit(paraphrases.unpack, meteor.paraphrase_table())
        counts = mteval.statistics(references, outputs, variant)
        flat_references, tokenized_outputs = (future.result() for future in tokenizing)
        remaining = iter(flat_references)
        tokenized = [list(islice(remaining, len(group))) for group in references]
        useful = paraphrases.select(table.result(), flat_references, tokenized_outputs)
        aligning = pool.submit(meteor.statistics, tokenized, tokenized_outputs, useful)
        rouges = rouge.sentence_scores(tokenized, tokenized_outputs)
        ciders = cider.sentence_scores(tokenized, tokenized_outputs)
        return Measurements(variant, counts, aligning.result(), rouges, ciders)


def _check(references: Sequence[Sequence[str]], outputs: Sequence[str], variant: str) -> None:
    if variant not in get_args(mteval.Variant):
        raise UserError(f"{variant!r} is no variant of BLEU and NIST: choose perl or python")
    if len(references) != len(outputs):
        raise UserError(f"there are {len(outputs)} outputs but references for {len(references)}: give one output each")
    if not outputs:
        raise UserError("there is nothing to score: give at least one output")
    for number, (group, output) in enumerate(zip(references, outputs, strict=True), start=1):
        if isinstance(group, str) or not group:
            raise UserError(f"instance {number} has no list of references: give at least one")
        if not all(isinstance(text, str) for text in (output, *group)):
            raise UserError(f"instance {number} has an output or a reference that is not a text: give an empty text")


def signature(variant: mteval.Variant = "perl") -> dict[str, str]:
    """What computed the scores, name by name; scores with different signatures are not to be compared.

    Raises:
        UserError: if there is no Java that runs.
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
