"""Equality with the official script's scores to its 4 decimals, from the command line and through `evaluate`.

Both variants of BLEU and NIST are computed from one run of Java.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_dist.cli.main import main
from lora_dist.metrics.suite import METRICS

pytestmark = [pytest.mark.launched, pytest.mark.usefixtures("scored_once")]
TESTS = Path(__file__).resolve().parents[1]
SETS = ("test-template", "test-human-loo", "dev-noisy")
VARIANTS = ("perl", "python")


def sets(default: str) -> pytest.MarkDecorator:
    """One of the sets by default; the command line and `evaluate` have different ones, each in both variants."""
    return pytest.mark.parametrize(
        "name", [name if name == default else pytest.param(name, marks=pytest.mark.slow) for name in SETS]
    )


# Runs in a separate process, because evaluate reads its settings at import.
EVALUATE_SCRIPT = """
import json, socket, sys
from pathlib import Path

def fail(*_, **__):
    raise AssertionError("a network access")

socket.socket.connect = socket.getaddrinfo = fail
import evaluate
import lora_dist.metrics.suite
from scored_once import texts_scored_once

metric = evaluate.load(str(lora_dist.metrics.suite.E2E_NLG))
assert metric.description and metric.citation and len(metric.features) == 2
jobs = json.load(sys.stdin)
with texts_scored_once():
    print(json.dumps([metric.compute(**job) for job in jobs]))
"""


def scores_from_evaluate(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, float]]:
    """Compute scores with evaluate in `folder`, without network and with an empty cache."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE_SCRIPT],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **offline, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores: list[dict[str, float]] = json.loads(done.stdout)
    return scores


def official_scores(shared: Path, name: str, variant: str) -> dict[str, str]:
    scores = json.loads((shared / "golden" / "scores.json").read_text())[name]
    return {metric: f"{(scores if metric in scores else scores[variant])[metric]:.4f}" for metric in METRICS}


def to_4_decimals(scores: dict[str, Any]) -> dict[str, str]:
    return {metric: f"{scores[metric]:.4f}" for metric in METRICS}


@pytest.mark.shared
@sets(default="test-template")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_score_command_prints_the_official_scores(
    name: str, variant: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(shared / "golden" / f"{name}.{end}.txt") for end in ("refs", "sys")]
    assert main(["score", *files, "--mteval", variant, "--json"]) == 0
    assert to_4_decimals(json.loads(capsys.readouterr().out)) == official_scores(shared, name, variant)


@pytest.mark.slow
@pytest.mark.shared
@sets(default="dev-noisy")
def test_evaluate_computes_the_official_scores(name: str, shared: Path, tmp_path: Path) -> None:
    groups = (shared / "golden" / f"{name}.refs.txt").read_text().strip("\n").split("\n\n")
    texts = {
        "predictions": (shared / "golden" / f"{name}.sys.txt").read_text().removesuffix("\n").split("\n"),
        "references": [group.split("\n") for group in groups],
    }
    found = scores_from_evaluate([{**texts, "mteval": variant} for variant in VARIANTS], tmp_path)
    assert list(map(to_4_decimals, found)) == [official_scores(shared, name, variant) for variant in VARIANTS]


def test_evaluate_takes_one_or_several_references_per_prediction(tmp_path: Path) -> None:
    texts = ["The Eagle is a cheap French pub by the river.", "Larkspur serves good Greek food near the harbour."]
    one, several = scores_from_evaluate(
        [
            {"predictions": texts, "references": texts},
            {"predictions": texts, "references": [["Another.", texts[0]], [texts[1]]]},
        ],
        tmp_path,
    )
    assert list(one) == list(METRICS)
    assert (one["BLEU"], one["ROUGE_L"], one["CIDEr"]) == pytest.approx((1, 1, 10))
    assert several["BLEU"] == pytest.approx(1)
    assert several["CIDEr"] < 10  # the mean over the references


def test_outputs_equal_to_their_only_reference_have_the_maximum_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, outputs = tmp_path / "references.txt", tmp_path / "outputs.txt"
    texts = ["The Eagle is a cheap French pub by the river.", "Larkspur serves good Greek food near the harbour."]
    references.write_text("\n\n".join(texts) + "\n\n")
    outputs.write_text("\n".join(texts) + "\n")
    assert main(["score", str(references), str(outputs), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["BLEU"] == pytest.approx(1, abs=1e-6)
    assert scores["ROUGE_L"] == pytest.approx(1, abs=1e-6)
    assert scores["CIDEr"] == pytest.approx(10, abs=1e-4)
    outputs.write_text("\n".join(reversed(texts)) + "\n")
    assert main(["score", str(references), str(outputs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["BLEU"] < 0.5
