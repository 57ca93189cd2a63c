import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_dist.errors import UserError
from lora_dist.metrics import meteor
from lora_dist.metrics.java import find_jar, run_java

NO_PARAPHRASES = gzip.compress(b"")
REFERENCES = [
    ["the eagle is a cheap pub", "a pub named the eagle"],
    ["blue spice serves food"],
    ["the cat sat on the mat"],
    ["a restaurant near", "something else"],
    ["good"],
]
OUTPUTS = [
    "the eagle is an inexpensive pub",
    "blue spice serves food",
    "on the mat sat the cat",
    "the restaurants near",
    "",
]


@pytest.fixture(scope="module")
def statistics() -> NDArray[np.float64]:
    return meteor.alignment_statistics(REFERENCES, OUTPUTS, NO_PARAPHRASES)


def test_the_statistics_of_an_alignment_are_in_the_documented_columns(statistics: NDArray[np.float64]) -> None:
    # Six tokens each; "the", "is", "a" and "an" are function words; "cheap" and "inexpensive" are synonyms.
    assert statistics.shape == (5, 23)
    lengths, matches, chunks = statistics[0, :4], statistics[0, 4:20].reshape(4, 4), statistics[0, 20]
    assert lengths.tolist() == [6, 6, 3, 3]
    exact, stem, synonym, paraphrase = matches[:, :2].tolist()
    assert (exact, stem, synonym, paraphrase) == ([2, 2], [0, 0], [1, 1], [0, 0])
    # the eagle is | cheap pub
    assert chunks == 2


def test_sentence_scores_equal_hand_computed_ones(statistics: NDArray[np.float64]) -> None:
    scores = meteor.sentence_meteor(statistics)
    assert scores[1] == 1
    # All tokens match in another order, so only fragmentation counts: "on the mat", "sat", "the cat" for 6 matches.
    assert scores[2] == pytest.approx(1 - 0.6 * (3 / 6) ** 0.2)
    # One of two content words (weight 0.75) matches exactly, the other by its stem (weight 0.6). The function word
    # (0.25) does not match. Precision equals recall, hence the mean. The two matches are one chunk.
    f_mean = (0.75 + 0.75 * 0.6) / (2 * 0.75 + 0.25)
    assert scores[3] == pytest.approx(f_mean * (1 - 0.6 * (1 / 2) ** 0.2))
    assert scores[4] == 0
    assert 0 < scores[0] < 1


def test_the_corpus_score_is_that_of_the_summed_statistics_and_not_the_mean(statistics: NDArray[np.float64]) -> None:
    assert meteor.corpus_meteor(statistics[1:2]) == 1
    assert meteor.corpus_meteor(statistics[[1, 1, 1]]) == 1
    assert meteor.corpus_meteor(statistics[4:]) == 0
    assert meteor.corpus_meteor(statistics) != pytest.approx(meteor.sentence_meteor(statistics).mean(), abs=1e-3)


def test_scores_equal_those_of_the_programs_eval_command(statistics: NDArray[np.float64], tmp_path: Path) -> None:
    (tmp_path / "none.gz").write_bytes(NO_PARAPHRASES)
    rows = [" ".join(map(str, row)) for row in statistics.tolist()]
    jar = str(find_jar("meteor/meteor-1.5.jar"))
    arguments = ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm", "-a", "none.gz"]
    stdout = run_java(arguments, " ||| ".join(["EVAL", *rows]) + "\n", folder=tmp_path)
    *sentences, total = (float(line) for line in stdout.split())
    assert meteor.sentence_meteor(statistics) == pytest.approx(sentences, abs=1e-15)
    assert meteor.corpus_meteor(statistics) == pytest.approx(total, abs=1e-15)


def test_bars_tabs_and_line_breaks_shift_no_row() -> None:
    references = [["a | b ||| c"], ["the pub"], ["x"], ["|||"], ["the river"]]
    outputs = ["a ||| b", "the\npub", "x\r\u2028y\tz", "||| |||", "the river"]
    statistics = meteor.alignment_statistics(references, outputs, NO_PARAPHRASES)
    # Bars are removed from an output; otherwise "a" would be another reference.
    assert statistics[:, 0].tolist() == [2, 2, 3, 0, 2]
    scores = meteor.sentence_meteor(statistics)
    assert scores[[1, 4]].tolist() == [1, 1]
    assert scores[0] > 0
    assert scores[3] == 0


def test_several_processes_keep_the_order_of_instances(
    statistics: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meteor, "_MIN_INSTANCES_PER_PROCESS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (meteor.alignment_statistics(REFERENCES, OUTPUTS, NO_PARAPHRASES) == statistics).all()


def test_the_given_paraphrase_table_is_used(tmp_path: Path) -> None:
    table = gzip.compress(b"0.5\nlow priced\nbudget\n")
    with_table, without = (
        meteor.alignment_statistics([["a budget inn"]], ["low priced"], used)[0] for used in (table, NO_PARAPHRASES)
    )
    assert with_table[16:18].tolist() == [2, 1]
    assert without[4:20].sum() == 0


def test_an_unexpected_answer_of_the_program_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "run_java", lambda *arguments, **options: "Error: specify hypothesis\n")
    with pytest.raises(UserError, match="Error: specify hypothesis"):
        meteor.alignment_statistics([["a"]], ["a"], NO_PARAPHRASES)
