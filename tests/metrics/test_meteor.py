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
def counts() -> NDArray[np.float64]:
    return meteor.statistics(REFERENCES, OUTPUTS, NO_PARAPHRASES)


def test_counts_of_an_alignment(counts: NDArray[np.float64]) -> None:
    # Six words each; "the", "is", "a" and "an" are function words; "cheap" and "inexpensive" are synonyms.
    assert counts.shape == (5, 23)
    lengths, matches, chunks = counts[0, :4], counts[0, 4:20].reshape(4, 4), counts[0, 20]
    assert lengths.tolist() == [6, 6, 3, 3]
    exact, stem, synonym, paraphrase = matches[:, :2].tolist()
    assert (exact, stem, synonym, paraphrase) == ([2, 2], [0, 0], [1, 1], [0, 0])
    # the eagle is | cheap pub
    assert chunks == 2


def test_scores(counts: NDArray[np.float64]) -> None:
    scores = meteor.sentence_scores(counts)
    assert scores[1] == 1
    # All words match, in another order: only the fragmentation costs, "on the mat", "sat" and "the cat" for 6 matches.
    assert scores[2] == pytest.approx(1 - 0.6 * (3 / 6) ** 0.2)
    # Of two content words (weight 0.75) one matches and one matches by its stem (weight 0.6); the function word (0.25)
    # does not. Precision and recall are the same, and so is their mean; the two matches are one chunk.
    mean = (0.75 + 0.75 * 0.6) / (2 * 0.75 + 0.25)
    assert scores[3] == pytest.approx(mean * (1 - 0.6 * (1 / 2) ** 0.2))
    assert scores[4] == 0
    assert 0 < scores[0] < 1


def test_score_of_a_set_sums_counts_and_is_not_the_mean(counts: NDArray[np.float64]) -> None:
    assert meteor.score(counts[1:2]) == 1
    assert meteor.score(counts[[1, 1, 1]]) == 1
    assert meteor.score(counts[4:]) == 0
    assert meteor.score(counts) != pytest.approx(meteor.sentence_scores(counts).mean(), abs=1e-3)


def test_formulas_are_the_programs(counts: NDArray[np.float64], tmp_path: Path) -> None:
    (tmp_path / "none.gz").write_bytes(NO_PARAPHRASES)
    rows = [" ".join(map(str, row)) for row in counts.tolist()]
    jar = str(find_jar("meteor/meteor-1.5.jar"))
    arguments = ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm", "-a", "none.gz"]
    printed = run_java(arguments, " ||| ".join(["EVAL", *rows]) + "\n", folder=tmp_path)
    *sentences, total = (float(line) for line in printed.split())
    assert meteor.sentence_scores(counts) == pytest.approx(sentences, abs=1e-15)
    assert meteor.score(counts) == pytest.approx(total, abs=1e-15)


def test_bars_tabs_and_line_breaks_do_not_shift_rows() -> None:
    references = [["a | b ||| c"], ["the pub"], ["x"], ["|||"], ["the river"]]
    outputs = ["a ||| b", "the\npub", "x\r\u2028y\tz", "||| |||", "the river"]
    counts = meteor.statistics(references, outputs, NO_PARAPHRASES)
    # Bars are taken out of an output; without that they would make "a" a reference.
    assert counts[:, 0].tolist() == [2, 2, 3, 0, 2]
    scores = meteor.sentence_scores(counts)
    assert scores[[1, 4]].tolist() == [1, 1]
    assert scores[0] > 0
    assert scores[3] == 0


def test_several_processes_keep_the_order(counts: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "_LEAST_INSTANCES", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (meteor.statistics(REFERENCES, OUTPUTS, NO_PARAPHRASES) == counts).all()


def test_the_table_is_used(tmp_path: Path) -> None:
    table = gzip.compress(b"0.5\nlow priced\nbudget\n")
    with_table, without = (
        meteor.statistics([["a budget inn"]], ["low priced"], used)[0] for used in (table, NO_PARAPHRASES)
    )
    assert with_table[16:18].tolist() == [2, 1]
    assert without[4:20].sum() == 0


def test_unexpected_answers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "run_java", lambda *arguments, **options: "Error: specify hypothesis\n")
    with pytest.raises(UserError, match="Error: specify hypothesis"):
        meteor.statistics([["a"]], ["a"], NO_PARAPHRASES)
