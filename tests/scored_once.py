"""Scoring the same texts without running Java for them again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from lora_dist.metrics import mteval, suite


@contextmanager
def texts_scored_once() -> Iterator[None]:
    """Within the block, run Java once for the same texts; another variant only counts BLEU's and NIST's n-grams again.

    The other metrics are the same in both variants.
    """
    known: dict[str, suite.CorpusStatistics] = {}
    compute = suite.compute_statistics

    def compute_once(
        references: Sequence[Sequence[str]], outputs: Sequence[str], variant: mteval.Variant = "perl"
    ) -> suite.CorpusStatistics:
        texts = repr((references, outputs))
        if texts not in known:
            known[texts] = compute(references, outputs, variant)
        if known[texts].variant == variant:
            return known[texts]
        return replace(known[texts], variant=variant, mteval=mteval.ngram_statistics(references, outputs, variant))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "compute_statistics", compute_once)
        yield
