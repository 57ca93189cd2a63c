import math

import numpy as np
import pytest

from lora_dist.evaluation.scoring import sentence_table
from lora_dist.metrics import suite as metrics
from lora_dist.metrics.readers import Instances
from lora_dist.metrics.sentences import sentence_scores

REFERENCES = [
    ["The Eagle is a cheap pub.", "A cheap pub is called The Eagle."],
    ["Blue Spice serves Chinese food near Crowne Plaza Hotel."],
    ["The Punter is a restaurant."],
]
OUTPUTS = ["The Eagle is an inexpensive pub.", "Blue Spice serves Chinese food near Crowne Plaza Hotel.", "Punter!"]


@pytest.fixture(scope="module")
def measured() -> metrics.Measurements:
    return metrics.measure(REFERENCES, OUTPUTS)


def test_a_row_is_the_score_of_the_instance_alone(measured: metrics.Measurements) -> None:
    columns = sentence_scores(REFERENCES, OUTPUTS, measured)
    for row in range(2):
        alone = metrics.score(REFERENCES[row : row + 1], OUTPUTS[row : row + 1], "python")
        for name in ("BLEU", "NIST", "METEOR", "ROUGE_L"):
            assert columns[name][row] == pytest.approx(alone[name], abs=1e-12)


def test_columns_that_are_averaged(measured: metrics.Measurements) -> None:
    columns = sentence_scores(REFERENCES, OUTPUTS, measured)
    scores = measured.scores()
    assert columns["ROUGE_L"].mean() == pytest.approx(scores["ROUGE_L"])
    assert columns["CIDEr"].mean() == pytest.approx(scores["CIDEr"])


def test_smoothed_bleu_by_hand(measured: metrics.Measurements) -> None:
    # Tokens: the eagle is an inexpensive pub . (7), against the eagle is a cheap pub . (7).
    # Matches 5 of 7, 3 of 6 ("the eagle", "eagle is", "pub ."), 1 of 5, 0 of 4; 1 is added to each number.
    expected = (6 / 8 * 4 / 7 * 2 / 6 * 1 / 5) ** (1 / 4)
    assert sentence_scores(REFERENCES, OUTPUTS, measured)["sentBLEU"][0] == pytest.approx(expected)


def test_nist_is_not_a_number_where_the_output_is_too_short(measured: metrics.Measurements) -> None:
    columns = sentence_scores(REFERENCES, OUTPUTS, measured)
    assert math.isnan(columns["NIST"][2])
    # Five different words of one reference carry log2 of its length in bits; what follows them is certain.
    assert np.isfinite(columns["NIST"][:2]).all()
    assert columns["NIST"][1] == pytest.approx(math.log2(10))


def test_the_table_keeps_one_line_an_instance() -> None:
    outputs = ["a\u2028b", 'say "hi"\tnow', "", "x\vy\r\nz"]
    instances = Instances([["r"]] * 4, outputs, ["name[A]", "", "", ""])
    text = sentence_table(instances, {"BLEU": np.array([0.5, 1, math.nan, 0.00004])})
    assert text.split("\n") == [
        "src\tsys_out\tBLEU",
        "name[A]\ta b\t0.5000",
        '\t"say ""hi""\tnow"\t1.0000',
        "\t\tnan",
        "\tx y z\t0.0000",
        "",
    ]
