"""Scores of outputs in the files that people bring: other orders and formats, parts, repeats, and what is refused."""

import csv
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from score_command import Capture, error_message, write

from lora_dist.cli.main import main
from lora_dist.metrics import suite

pytestmark = [pytest.mark.launched, pytest.mark.usefixtures("scored_once")]

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
    whole = output_table(tmp_path, (2, 0, 1))
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
