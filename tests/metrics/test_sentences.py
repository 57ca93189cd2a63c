import math

import numpy as np
import pytest

from lora_dist.metrics import suite
from lora_dist.metrics.sentences import sentence_scores

REFERENCES = [
    ["The Eagle is a cheap pub.", "A cheap pub is called The Eagle."],
    ["Blue Spice serves Chinese food near Crowne Plaza Hotel."],
    ["The Punter is a restaurant."],
]
OUTPUTS = ["The Eagle is an inexpensive pub.", "Blue Spice serves Chinese food near Crowne Plaza Hotel.", "Punter!"]


@pytest.fixture(scope="module")
def statistics() -> suite.CorpusStatistics:
    return suite.compute_statistics(REFERENCES, OUTPUTS)


@pytest.mark.launched
def test_a_row_equals_the_corpus_score_of_only_its_instance(statistics: suite.CorpusStatistics) -> None:
    columns = sentence_scores(REFERENCES, OUTPUTS, statistics)
    for row in range(2):
        corpus_scores = suite.score(REFERENCES[row : row + 1], OUTPUTS[row : row + 1], "python")
        for name in ("BLEU", "NIST", "METEOR", "ROUGE_L"):
            assert columns[name][row] == pytest.approx(corpus_scores[name], abs=1e-12)


def test_corpus_rouge_l_and_cider_are_the_means_of_their_columns(statistics: suite.CorpusStatistics) -> None:
    columns = sentence_scores(REFERENCES, OUTPUTS, statistics)
    scores = statistics.scores()
    assert columns["ROUGE_L"].mean() == pytest.approx(scores["ROUGE_L"])
    assert columns["CIDEr"].mean() == pytest.approx(scores["CIDEr"])


def test_sentbleu_equals_a_hand_computed_score(statistics: suite.CorpusStatistics) -> None:
    # Tokens: the eagle is an inexpensive pub . (7) vs. the eagle is a cheap pub . (7).
    # Matches: 5 of 7, 3 of 6 ("the eagle", "eagle is", "pub ."), 1 of 5, 0 of 4; add 1 to each count.
    expected = (6 / 8 * 4 / 7 * 2 / 6 * 1 / 5) ** (1 / 4)
    assert sentence_scores(REFERENCES, OUTPUTS, statistics)["sentBLEU"][0] == pytest.approx(expected)


def test_nist_is_nan_if_the_output_is_too_short(statistics: suite.CorpusStatistics) -> None:
    columns = sentence_scores(REFERENCES, OUTPUTS, statistics)
    assert math.isnan(columns["NIST"][2])
    # Distinct unigrams of one reference carry log2 of its length in bits; longer n-grams carry 0 bits.
    assert np.isfinite(columns["NIST"][:2]).all()
    assert columns["NIST"][1] == pytest.approx(math.log2(10))
