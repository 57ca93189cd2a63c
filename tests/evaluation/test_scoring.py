"""Scores of files and runs from the command line, their files and their messages."""

import csv
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_dist.cli.main import main
from lora_dist.errors import UserError
from lora_dist.evaluation.scoring import score_files, score_run
from lora_dist.files import write_json, write_jsonl, write_text
from lora_dist.metrics import suite
from lora_dist.run_dir import RunDir

pytestmark = pytest.mark.usefixtures("scored_once")
Capture = pytest.CaptureFixture[str]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def error_message(capsys: Capture, *arguments: str) -> str:
    """Run the score command and return the one sentence on stderr."""
    assert main(["score", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lora-dist: ")
    assert captured.err.count("\n") == 1
    return captured.err


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


MRS = ("name[Cocum], food[French]", "name[Zizzi], area[riverside]", "name[Aromi], eatType[pub]")
TEXTS = ("Cocum serves French food.", "Zizzi is by the river.", "Aromi is a pub in the city.")


def reference_table(folder: Path) -> str:
    """Write a table of references that the outputs `TEXTS` equal."""
    lines = [f'"{mr}",{text}' for mr, text in zip(MRS, TEXTS, strict=True)]
    return write(folder / "references.csv", "\n".join(["mr,ref", *lines]) + "\n")


def output_table(folder: Path, order: Sequence[int], texts: Sequence[str] = TEXTS) -> str:
    lines = [f"{MRS[index]}\t{texts[index]}" for index in order]
    return write(folder / "outputs.tsv", "\n".join(["MR\toutput", *lines]) + "\n")


def scored(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["score", *arguments, "--json"]) == 0
    scores: dict[str, Any] = json.loads(capsys.readouterr().out)
    return scores


def test_outputs_in_another_order_keep_their_own_sources(tmp_path: Path, capsys: Capture) -> None:
    references, outputs, table = reference_table(tmp_path), output_table(tmp_path, (2, 0, 1)), tmp_path / "s.tsv"
    scores = scored(capsys, references, outputs, "--mrs", references, "--sentence-level", str(table))
    assert (scores["BLEU"], scores["slot_error_rate"]["rate"]) == (1, 0)
    with table.open(encoding="utf-8", newline="") as file:
        rows = [(row["src"], row["sys_out"]) for row in csv.DictReader(file, dialect="excel-tab")]
    assert rows == [(MRS[index], TEXTS[index]) for index in (2, 0, 1)]
    assert scored(capsys, references, str(table))["BLEU"] == 1


def test_a_part_of_the_instances_is_scored_only_if_asked_and_the_signature_says_so(
    tmp_path: Path, capsys: Capture
) -> None:
    references, outputs = reference_table(tmp_path), output_table(tmp_path, (0, 2))
    assert "no output for 1 of the 3 instances" in error_message(capsys, references, outputs)
    signature = scored(capsys, references, outputs, "--partial")["signature"]
    assert (signature["instances"], signature["partial"]) == (2, "2 of 3 instances")
    whole = output_table(tmp_path, (0, 1, 2))
    assert "partial" not in scored(capsys, references, whole, "--partial")["signature"]


def test_outputs_jsonl_and_a_byte_order_mark_give_the_scores_of_plain_text(tmp_path: Path, capsys: Capture) -> None:
    """Also one row per reference, and the lines ends of other systems."""
    references = reference_table(tmp_path)
    rows = [{"index": index, "mr": MRS[index], "text": TEXTS[index], "score": -1.0} for index in (0, 1, 2)]
    files = [
        write(tmp_path / "plain.txt", "\n".join(TEXTS) + "\n"),
        write(tmp_path / "mark.txt", "\ufeff" + "\r\n".join(TEXTS) + "\r\n"),
        write(tmp_path / "outputs.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        output_table(tmp_path, (0, 0, 1, 1, 1, 2)),
    ]
    found = [scored(capsys, references, file) for file in files]
    assert {tuple(scores[name] for name in suite.METRICS) for scores in found} == {
        tuple(found[0][name] for name in suite.METRICS)
    }
    assert found[0]["BLEU"] == 1
    assert [scores["signature"]["instances"] for scores in found] == [3] * 4


@pytest.mark.parametrize("option", ["--mrs", "--against"])
def test_other_inputs_are_read_with_the_same_care(option: str, tmp_path: Path, capsys: Capture) -> None:
    references, outputs = reference_table(tmp_path), output_table(tmp_path, (0, 1, 2))
    bootstrap = ["--bootstrap", "40"] if option == "--against" else []
    for content, message in (
        (f'mr\tout\n{MRS[0]}\t"One.\n{MRS[1]}\tTwo.\n', "line 2: a double quote opens a cell"),
        ("mr\tout\n".encode("utf-16"), "is UTF-16"),
    ):
        other = write(tmp_path / "other.tsv", content)
        assert message in error_message(capsys, references, outputs, option, other, *bootstrap)


@pytest.mark.parametrize("option", ["--save", "--sentence-level"])
def test_an_output_file_that_is_an_input_is_refused_and_unchanged(option: str, tmp_path: Path, capsys: Capture) -> None:
    references, outputs = Path(reference_table(tmp_path)), Path(output_table(tmp_path, (0, 1, 2)))
    mrs = Path(write(tmp_path / "mrs.csv", references.read_bytes()))
    (tmp_path / "link.csv").symlink_to(references)
    os.link(outputs, tmp_path / "hard.tsv")
    before = [path.read_bytes() for path in (references, outputs, mrs)]
    arguments = [str(references), str(outputs), "--mrs", str(mrs)]
    for target in (references, outputs, mrs, tmp_path / "link.csv", tmp_path / "hard.tsv", tmp_path / "." / "mrs.csv"):
        assert f"{option} {target} is the file" in error_message(capsys, *arguments, option, str(target))
    same = str(tmp_path / "new.json")
    assert "of the same command" in error_message(capsys, *arguments, "--save", same, "--sentence-level", same)
    assert [path.read_bytes() for path in (references, outputs, mrs)] == before
    assert not os.path.exists(same)


def test_a_pipe_is_read_once(tmp_path: Path, capsys: Capture) -> None:
    os.mkfifo(tmp_path / "pipe")
    content = "\n".join(TEXTS).encode()
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content))
    writer.start()
    scores = scored(capsys, reference_table(tmp_path), str(tmp_path / "pipe"))
    writer.join()
    assert scores["signature"]["outputs"] == hashlib.sha256(content).hexdigest()


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
