"""The official script's printed scores, to the 4 decimals it prints."""

import json
from pathlib import Path

import pytest

from lora_dist.cli import main

SETS = ("test-template", "test-human-loo", "dev-noisy")


@pytest.mark.shared
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("mteval", ["perl", "python"])
def test_the_official_scores(name: str, mteval: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "golden"
    expected = json.loads((folder / "scores.json").read_text())[name]
    files = [str(folder / f"{name}.refs.txt"), str(folder / f"{name}.sys.txt")]
    assert main(["score", *files, "--mteval", mteval, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for metric in ("METEOR", "ROUGE_L", "CIDEr"):
        assert scores[metric] == pytest.approx(expected[metric], abs=6e-5)
    for metric in ("BLEU", "NIST"):
        assert scores[metric] == pytest.approx(expected[mteval][metric], abs=6e-5)


def test_a_sentence_that_is_its_only_reference_scores_full_marks(
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
