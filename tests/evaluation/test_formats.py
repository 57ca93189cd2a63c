"""Scores as text."""

import math

import numpy as np

from lora_dist.evaluation.formats import sentence_tsv
from lora_dist.metrics.readers import Instances


def test_the_tsv_has_one_line_per_instance() -> None:
    outputs = ["a\u2028b", 'say "hi"\tnow', "", "x\vy\r\nz"]
    instances = Instances([["r"]] * 4, outputs, ["name[A]", "", "", ""], [0, 1, 2, 3], 4)
    text = sentence_tsv(instances, {"BLEU": np.array([0.5, 1, math.nan, 0.00004])})
    assert text.split("\n") == [
        "src\tsys_out\tBLEU",
        "name[A]\ta b\t0.5000",
        '\t"say ""hi""\tnow"\t1.0000',
        "\t\tnan",
        "\tx y z\t0.0000",
        "",
    ]
