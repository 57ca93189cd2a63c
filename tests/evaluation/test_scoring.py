"""Scores of files and runs from the command line, their files and their messages."""

import csv
import json
from pathlib import Path

import pytest
from score_command import Capture, error_message, write

from lora_dist.cli.main import main
from lora_dist.errors import UserError
from lora_dist.evaluation.scoring import score_files, score_run
from lora_dist.files import write_json, write_jsonl, write_text
from lora_dist.metrics import suite
from lora_dist.run_dir import RunDir

pytestmark = [pytest.mark.launched, pytest.mark.usefixtures("scored_once")]


@pytest.mark.parametrize(
    ("references", "outputs", "message"),
    [
        ("a\n\nb\n", "a\n", "has 1 outputs but"),
        ("a\n\nb\n", "a\nb\nc\n", "the first unmatched one is line 3 of "),
        ("a\n\n\nb\n", "a\nb\n", "references.txt, line 3: an instance has no reference"),
        ("", "a\n", "references.txt is empty"),
        ("a\n", "", "outputs.txt is empty"),
        ("a\n\nb\n", b"a\ncaf\xe9\n", "outputs.txt, line 2: this is not UTF-8"),
        (b"a\n\xff\n", "a\nb\n", "references.txt, line 2: this is not UTF-8"),
        ("a\n\nb\n", "a\n</doc>\n", "use --mteval python"),
        (".\n\n?\n", "a\nb\n", "no reference has a token"),
    ],
)
def test_wrong_plain_text_files_are_reported_in_one_sentence(
    references: str | bytes, outputs: str | bytes, message: str, tmp_path: Path, capsys: Capture
) -> None:
    files = write(tmp_path / "references.txt", references), write(tmp_path / "outputs.txt", outputs)
    assert message in error_message(capsys, *files)


@pytest.mark.parametrize(
    ("references", "outputs", "message"),
    [
        ("mr,ref\na,b\nc,d,e\n", "mr,out\na,b\n", "references.csv, line 3: 3 columns"),
        ("mr,text\na,b\n", "mr,out\na,b\n", "references.csv, line 1: 1 of 2 columns look like sources"),
        ("mr,ref\na,b\n", "mr,out\na,b\nd,e\n", "outputs.csv, line 3: "),
        ("mr,ref\na,b\n", "mr,out\n", "outputs.csv has only a header"),
    ],
)
def test_wrong_tables_are_reported_in_one_sentence(
    references: str, outputs: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    files = write(tmp_path / "references.csv", references), write(tmp_path / "outputs.csv", outputs)
    assert message in error_message(capsys, *files)


def test_unreadable_files_are_reported_in_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    existing = write(tmp_path / "existing.txt", "a\n")
    assert "nowhere.txt cannot be read" in error_message(capsys, existing, str(tmp_path / "nowhere.txt"))
    assert "cannot be read (Is a directory)" in error_message(capsys, str(tmp_path), existing)


def test_an_unwritable_file_is_reported_in_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    text = write(tmp_path / "existing.txt", "The Eagle is a cheap pub.\nThe Mill is an expensive pub.\n")
    for option in ("--save", "--sentence-level"):
        assert "cannot be written" in error_message(capsys, text, text, option, f"{text}/scores")


def test_tables_are_joined_by_source_and_their_mojibake_is_fixed(tmp_path: Path, capsys: Capture) -> None:
    references = [("a", "The Eagle costs £20 at Café Rouge."), ("b", "The Mill is by the river."), ("a", "An eagle.")]
    lines = ["mr\tref", *(f"{mr}\t{text}" for mr, text in references)]
    table = write(tmp_path / "references.tsv", "\ufeff" + "\n".join(lines) + "\n")
    outputs = write(
        tmp_path / "outputs.csv", 'MR,output\nb,"The Mill is by the river."\na,The Eagle costs Â£20 at CafÃ© Rouge.\n'
    )
    sentences = tmp_path / "new folder" / "sentences.tsv"
    assert main(["score", table, outputs, "--json", "--sentence-level", str(sentences)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["BLEU"] == pytest.approx(1)
    assert scores["METEOR"] == pytest.approx(1)
    with sentences.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert [row["src"] for row in rows] == ["b", "a"]
    assert rows[1]["sys_out"] == "The Eagle costs £20 at Café Rouge."
    assert rows[1]["BLEU"] == rows[1]["ROUGE_L"] == "1.0000"


def test_line_separators_inside_an_output_shift_no_row(tmp_path: Path, capsys: Capture) -> None:
    texts = ["The Eagle is a cheap French pub.", "Larkspur serves good Greek food.", "The Mill is by the river."]
    references = write(tmp_path / "references.txt", "\n\n".join(texts) + "\n")
    separated = [text.replace(" is ", mark + "is ") for text, mark in zip(texts, ("\u2028", "\v", "\x85"), strict=True)]
    outputs = write(tmp_path / "outputs.txt", "\n".join(separated) + "\n")
    assert main(["score", references, outputs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ROUGE_L"] == pytest.approx(1)


def test_the_printed_scores_end_with_the_signature(tmp_path: Path, capsys: Capture) -> None:
    text = write(tmp_path / "texts.txt", "The Eagle is a cheap pub.\nThe Mill is an expensive pub.\n")
    assert main(["score", text, text, "--mteval", "python"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"]
    assert lines[0].split()[1] == "1.0000"
    assert "  BLEU: pymteval.py (-p), case-insensitive" in lines
    assert [line.split(":")[0].strip() for line in lines[-3:]] == ["instances", "references", "outputs"]
    assert lines[-3] == "  instances: 2"


def decoded_run(folder: Path, food: str) -> RunDir:
    """A decoded run whose first MR asks for the food; the texts are always the same, and so are scored once."""
    run = RunDir(folder)
    texts = ["Cocum has French food\u2028and good service.", "Zizzi is a nice place to eat."]
    mrs = [f"name[Cocum], food[{food}]", "name[Zizzi], area[riverside]"]
    write_jsonl(run.outputs, [{"mr": mr, "text": text} for mr, text in zip(mrs, texts, strict=True)])
    lines = [text.replace("\u2028", " ") for text in texts]
    write_text(run.outputs_text, "\n".join(lines) + "\n")
    write_text(run.references_text, "\n\n".join(lines) + "\n\n")
    write_json(run.decode_signature, {"beams": 10})
    return run


def test_a_killed_java_fails_the_scoring_and_the_next_scoring_has_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, compute_statistics = decoded_run(tmp_path, "French"), suite.compute_statistics

    def fail_once(*_: object) -> suite.CorpusStatistics:
        monkeypatch.setattr(suite, "compute_statistics", compute_statistics)
        raise UserError("java failed with exit code -9")

    monkeypatch.setattr(suite, "compute_statistics", fail_once)
    with pytest.raises(UserError, match="exit code -9"):
        score_run(run)
    assert not run.scores.exists()
    assert "bootstrap" in score_run(run)


@pytest.mark.parametrize(("food", "rate"), [("French", 0.25), ("Greek", None)])
def test_score_run_writes_the_scores_and_the_slot_error_rate(food: str, rate: float | None, tmp_path: Path) -> None:
    run = decoded_run(tmp_path, food)
    score_run(run)
    scores = json.loads(run.scores.read_text())
    assert scores["slot_error_rate"]["rate"] == rate
    assert scores["BLEU"] == pytest.approx(1)
    assert list(scores)[-1] == "signature"
    assert scores["signature"]["instances"] == 2
    with run.sentence_scores.open(encoding="utf-8", newline="") as file:
        sources = [row["src"] for row in csv.DictReader(file, dialect="excel-tab")]
    assert sources == [f"name[Cocum], food[{food}]", "name[Zizzi], area[riverside]"]
    assert score_files(run.references_text, run.sentence_scores)["BLEU"] == scores["BLEU"]
    if rate is None:
        assert "food[Greek]" in scores["slot_error_rate"]["reason"]
