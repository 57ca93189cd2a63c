import csv
import json
from pathlib import Path

import pytest

from lora_dist.cli.main import main

Capture = pytest.CaptureFixture[str]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def complaint(capsys: Capture, *arguments: str) -> str:
    """The one sentence that a command with a mistake in it prints."""
    assert main(["score", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lora-dist: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("references", "outputs", "said"),
    [
        ("a\n\nb\n", "a\n", "has 1 outputs but"),
        ("a\n\nb\n", "a\nb\nc\n", "outputs.txt goes on at line 3"),
        ("a\n\n\nb\n", "a\nb\n", "references.txt, line 3: an instance has no reference"),
        ("", "a\n", "references.txt is empty"),
        ("a\n", "", "outputs.txt is empty"),
        ("a\n\nb\n", b"a\ncaf\xe9\n", "outputs.txt, line 2: this is not UTF-8"),
        (b"a\n\xff\n", "a\nb\n", "references.txt, line 2: this is not UTF-8"),
        ("a\n\nb\n", "a\n</doc>\n", "use --mteval python"),
        (".\n\n?\n", "a\nb\n", "no reference holds a word"),
    ],
)
def test_bad_texts(references: str | bytes, outputs: str | bytes, said: str, tmp_path: Path, capsys: Capture) -> None:
    files = write(tmp_path / "references.txt", references), write(tmp_path / "outputs.txt", outputs)
    assert said in complaint(capsys, *files)


@pytest.mark.parametrize(
    ("references", "outputs", "said"),
    [
        ("mr,ref\na,b\nc,d,e\n", "mr,out\na,b\n", "references.csv, line 3: 3 columns"),
        ("mr,text\na,b\n", "mr,out\na,b\n", "references.csv, line 1: 1 of 2 columns look like sources"),
        ("mr,ref\na,b\n", "mr,out\na,b\nd,e\n", "outputs.csv, line 3: "),
        ("mr,ref\na,b\n", "mr,out\n", "outputs.csv has only a header"),
    ],
)
def test_bad_tables(references: str, outputs: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    files = write(tmp_path / "references.csv", references), write(tmp_path / "outputs.csv", outputs)
    assert said in complaint(capsys, *files)


def test_missing_files(tmp_path: Path, capsys: Capture) -> None:
    there = write(tmp_path / "there.txt", "a\n")
    assert "nowhere.txt cannot be read" in complaint(capsys, there, str(tmp_path / "nowhere.txt"))
    assert "cannot be read (Is a directory)" in complaint(capsys, str(tmp_path), there)


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    text = write(tmp_path / "there.txt", "The Eagle is a cheap pub.\nThe Mill is an expensive pub.\n")
    for option in ("--save", "--sentence-level"):
        assert "cannot be written" in complaint(capsys, text, text, option, f"{text}/scores")


def test_tables_go_together_by_meaning_and_their_misread_pounds_are_repaired(tmp_path: Path, capsys: Capture) -> None:
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


def test_separators_inside_an_output_shift_no_row(tmp_path: Path, capsys: Capture) -> None:
    texts = ["The Eagle is a cheap French pub.", "Larkspur serves good Greek food.", "The Mill is by the river."]
    references = write(tmp_path / "references.txt", "\n\n".join(texts) + "\n")
    marked = [text.replace(" is ", mark + "is ") for text, mark in zip(texts, ("\u2028", "\v", "\x85"), strict=True)]
    outputs = write(tmp_path / "outputs.txt", "\n".join(marked) + "\n")
    assert main(["score", references, outputs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ROUGE_L"] == pytest.approx(1)


def test_the_printed_table_ends_with_the_signature(tmp_path: Path, capsys: Capture) -> None:
    text = write(tmp_path / "texts.txt", "The Eagle is a cheap pub.\nThe Mill is an expensive pub.\n")
    assert main(["score", text, text, "--mteval", "python"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"]
    assert lines[0].split()[1] == "1.0000"
    assert "  BLEU: pymteval.py (-p), case-insensitive" in lines
    assert [line.split(":")[0].strip() for line in lines[-2:]] == ["references", "outputs"]
