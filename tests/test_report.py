"""The paper's table with runs beside it, and what must not be compared with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_dist.config import IMPROVED, UserError, to_json
from lora_dist.report import PAPER, write_report
from lora_dist.run_dir import RunDir

SCORES = {"BLEU": 0.71234, "NIST": 8.9, "METEOR": 0.46, "ROUGE_L": 0.7, "CIDEr": 2.5}


def scored_run(folder: Path, *, model: str = "gpt2", scope: str = "all", official: bool = True) -> RunDir:
    folder.mkdir()
    settings: dict[str, Any] = to_json(IMPROVED)
    settings["model"]["name"] = model
    (folder / "config.json").write_text(json.dumps({"settings": settings, "counts": {"trainable": 2359296}}))
    decoding = {"decode": {"ngram_scope": scope}, "official_test_set": official}
    (folder / "scores.json").write_text(json.dumps({**SCORES, "signature": {"decode": decoding}}))
    return RunDir(folder)


def test_the_papers_rows_stand_as_printed_and_the_run_below_them(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "mine")
    lines = write_report([run], run).splitlines()
    assert "| Improved, paper | 2.36M | 0.6882 | 8.7540 | 0.4667 | 0.7103 | 2.4537 |" in lines
    assert "| Original (GPT-2 M), paper | 0.35M | 0.7040 | 8.8500 | 0.4680 | 0.7180 | 2.5300 |" in lines
    assert "| mine | 2,359,296 | 0.7123 | 8.9000 | 0.4600 | 0.7000 | 2.5000 |" in lines
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(PAPER) + 1
    assert not [line for line in lines if line.startswith("- ")]  # nothing to be careful about
    assert run.report_markdown.is_file()


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({"model": "shared/mini-gpt2"}, "the base model is shared/mini-gpt2"),
        ({"scope": "generated"}, "repeated 4-grams are banned in the sentence alone"),
        ({"official": False}, "not the whole official test set"),
    ],
)
def test_what_must_not_be_compared_is_marked(difference: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = scored_run(tmp_path / "mine", **difference)
    notes = [line for line in write_report([run], run).splitlines() if line.startswith("- ")]
    assert len(notes) == 1
    assert notes[0].startswith(f"- mine: {said}")


def test_the_page_has_every_run_and_escapes_its_name(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path / "a<b>|c"), scored_run(tmp_path / "other")]
    text = write_report(runs, RunDir(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<td>a&lt;b&gt;|c</td>" in page
    assert "<td>other</td>" in page
    assert "a<b>\\|c" in text


def test_a_run_without_scores_is_refused(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "mine")
    run.scores.unlink()
    with pytest.raises(UserError, match="no scores yet"):
        write_report([run], run)
    assert not run.report_markdown.exists()
