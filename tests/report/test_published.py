"""The published scores and counts."""

import pytest

from lora_dist.report.published import PAPER, TRAINABLE


def test_the_printed_counts_of_trainable_params_are_the_rounded_exact_ones() -> None:
    printed = {p.name: p.trainable for p in PAPER}
    for name, count in TRAINABLE.items():
        assert float(printed[name].rstrip("M")) == pytest.approx(count / 1e6, abs=0.05)
