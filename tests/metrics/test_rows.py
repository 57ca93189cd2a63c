"""Rows of plain text and of outputs.jsonl."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics.rows import Row, is_json, json_rows, plain_rows
from lora_dist.metrics.text_files import TextFile, read_text_file


def file_of(folder: Path, text: str, name: str = "out.txt") -> TextFile:
    (folder / name).write_bytes(text.encode())
    return read_text_file(folder / name)


def test_outputs_are_one_per_line_and_may_be_empty(tmp_path: Path) -> None:
    rows = plain_rows(file_of(tmp_path, "one\n\n  \nfour\r\n\n"))
    assert [(row.line, row.text) for row in rows] == [(1, "one"), (2, ""), (3, ""), (4, "four"), (5, "")]


def test_special_characters_are_read_unchanged(tmp_path: Path) -> None:
    texts = ["a ||| b", '"quoted', "<b>&amp;</b>", "x" * 10_000, "tab\there", ".,;", "£ é Â£ Ł 中", "{a}", "[b]", "3"]
    file = file_of(tmp_path, "\n".join(texts))
    assert not is_json(file)
    assert [row.text for row in plain_rows(file)] == texts


def test_a_table_under_a_name_of_plain_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out\.txt has a tab in each line.* ends in \.tsv"):
        plain_rows(file_of(tmp_path, "mr\tout\na\tOne\n"))


def test_rows_of_outputs_jsonl_have_text_mr_and_index(tmp_path: Path) -> None:
    lines = [{"index": 1, "mr": "a", "text": "One", "score": -0.5}, {"mr": "b", "text": ""}, {"index": 0, "text": "x"}]
    rows = json_rows(file_of(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "outputs.jsonl"))
    assert rows == [Row(1, "a", "One", 1), Row(2, "b", ""), Row(3, "", "x", 0)]


@pytest.mark.parametrize(
    "value",
    [
        {"output": "One"},
        {"text": "One"},
        {"mr": "", "text": "One"},
        {"index": -1, "text": "One"},
        {"index": True, "text": "One"},
        {"index": "0", "text": "One"},
        {"mr": ["a"], "text": "One"},
        {"index": 0, "text": None},
        ["One", "Two"],
        "One",
        7,
    ],
)
@pytest.mark.parametrize("name", ["outputs.jsonl", "outputs.json"])
def test_other_json_is_refused_with_its_line(name: str, value: Any, tmp_path: Path) -> None:
    good = json.dumps({"index": 0, "text": "One"})
    with pytest.raises(UserError, match=rf"{name}, line 2: not a line of outputs\.jsonl"):
        json_rows(file_of(tmp_path, f"{good}\n{json.dumps(value)}\n", name))


def test_a_line_that_was_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: not a line"):
        json_rows(file_of(tmp_path, '{"index": 0, "text": "One"}\n{"index": 1, "te\n', "outputs.jsonl"))


@pytest.mark.parametrize(
    "text", ['{"text": "One", "mr": "a"}\n', '["One",\n"Two"]\n', '{\n  "a": [\n    "One"\n  ]\n}']
)
def test_json_is_found_whatever_its_name(text: str, tmp_path: Path) -> None:
    assert is_json(file_of(tmp_path, text))
    assert is_json(file_of(tmp_path, "One\n", "outputs.JSON"))
