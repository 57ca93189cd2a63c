"""The whole report: files, Table 3 with its footnotes, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run

from lora_dist.config import Settings
from lora_dist.errors import UserError
from lora_dist.presets import IMPROVED
from lora_dist.report import write
from lora_dist.report.published import PAPER
from lora_dist.report.write import write_report
from lora_dist.run_dir import RunDir


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take longest and have their own tests."""
    monkeypatch.setattr(write, "make_plots", lambda _: ([], []))


def all_scopes(settings: Settings) -> Settings:
    """Use the n-gram scope of the paper's decoder."""
    return replace(settings, decode=replace(settings.decode, ngram_scope="all"))


def test_table_3_has_the_papers_rows_as_printed_and_the_run_below_them(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine", all_scopes(IMPROVED))
    lines = write_report([run], run, "paper").splitlines()
    improved = "| Improved, paper | 2.36M | - | - | 0.6882 | 8.7540 | 0.4667 | 0.7103 | 2.4537 | - | Swift, Table 3 |"
    original = "| Original (GPT-2 M), paper | 0.35M | - | - | 0.7040 | 8.8500 | 0.4680 | 0.7180 | 2.5300 |"
    ours = (
        "| gpt2, improved | 2,359,296 | 1 | last | 0.7123 | 8.9000 | 0.4600 | 0.7000 | 2.5000 | 25.00% | this report |"
    )
    assert improved in lines
    assert f"{original} - | Swift, Table 3 |" in lines
    assert ours in lines
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(PAPER) + 1
    assert not [line for line in lines if line.startswith("- ")]  # no caveats
    assert run.report_markdown.is_file()


@pytest.mark.parametrize(
    ("settings", "run_options", "caveat"),
    [
        (replace(IMPROVED, model=replace(IMPROVED.model, name="shared/mini-gpt2")), {}, "the base model is mini-gpt2"),
        (replace(IMPROVED, train=replace(IMPROVED.train, max_steps=20)), {}, "trained for fewer steps"),
        (IMPROVED, {"official": False}, "not the whole official test set"),
        (
            IMPROVED,
            {"bleu": "pymteval.py (-p), case-insensitive"},
            "BLEU and NIST are computed by the official script's Python program",
        ),
    ],
)
def test_a_run_that_is_not_comparable_with_the_paper_has_a_footnote(
    settings: Settings, run_options: dict[str, Any], caveat: str, tmp_path: Path
) -> None:
    run = made_run(tmp_path / "mine", all_scopes(settings), **run_options)
    lines = write_report([run], run, "paper").splitlines()
    notes = [line for line in lines if line.startswith("- ")]
    assert len(notes) == 1
    assert notes[0].startswith(f"- [a] not comparable with the paper's scores: {caveat}")
    assert [line for line in lines if ", improved [a] |" in line]


@pytest.mark.parametrize("corpus", ["own data", "E2E cleaned"])
def test_there_are_no_published_scores_next_to_a_run_on_another_corpus(corpus: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine", official=False, corpus=corpus)
    write_report([run], run)
    text = run.report_markdown.read_text()
    assert f"the test set is {corpus}, not E2E's, so published scores are left out" in text
    assert "paper |" not in text.split("## Table 1")[0]
    assert "## Table 4" not in text


def test_runs_on_different_corpora_are_not_reported_together(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", corpus="E2E"), made_run(tmp_path / "b", official=False, corpus="E2E cleaned")]
    with pytest.raises(UserError, match=r"a is on E2E and .*b on E2E cleaned, whose scores do not compare: write a"):
        write_report(runs, RunDir(tmp_path / "report"))


def test_a_file_as_the_target_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        write_report([made_run(tmp_path / "mine")], RunDir(tmp_path / "file"))


@pytest.mark.parametrize("missing", ["outputs_text", "decode_signature"])
def test_a_run_that_has_not_been_decoded_is_refused(missing: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    getattr(run, missing).unlink()
    with pytest.raises(UserError, match=r"lora-dist decode"):
        write_report([run], run)
    assert not run.report_markdown.exists()
