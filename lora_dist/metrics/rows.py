"""Rows of plain text and of JSON lines; those of tables are in `tables`."""

import json
import re
from typing import Any, NamedTuple

from lora_dist.errors import UserError
from lora_dist.metrics.text_files import TextFile

_JSON_NAME = re.compile(r"\.jsonl?$", re.IGNORECASE)


class Row(NamedTuple):
    """One text of a file."""

    line: int
    """Number of its first line."""
    source: str
    """Its meaning representation (MR); empty if the file has none."""
    text: str
    place: int | None = None
    """Its place among the instances, in a run's outputs.jsonl."""


def plain_rows(file: TextFile) -> list[Row]:
    """Return the lines of plain text, the empty ones included.

    Raises:
        UserError: if each line has a tab, as in a table.
    """
    if len(file.lines) > 1 and all("\t" in line for line in file.lines):
        raise UserError(f"{file.path} has a tab in each line, as a table has: give it a name that ends in .tsv")
    return [Row(number, "", line.strip()) for number, line in enumerate(file.lines, start=1)]


def is_json(file: TextFile) -> bool:
    """Return whether a file holds JSON, by its name, its first line or its whole text."""
    if _JSON_NAME.search(file.path.name):
        return True
    first = next((line.lstrip() for line in file.lines if line), "")
    return first[:1] in ("{", "[") and (_is_nested(first) or _is_nested("\n".join(file.lines)))


def json_rows(file: TextFile) -> list[Row]:
    """Return the outputs of a run's outputs.jsonl, of which `text`, `mr` and `index` are read.

    Raises:
        UserError: for any other JSON, with the number of the first line that does not fit.
    """
    rows = []
    for number, line in enumerate(file.lines, start=1):
        if not line:
            continue
        value = _loads(line)
        fields = value if isinstance(value, dict) else {}
        text, mr, index = fields.get("text"), fields.get("mr", ""), fields.get("index")
        has_key = isinstance(mr, str) and (mr.strip() or index is not None)
        is_place = index is None or (type(index) is int and index >= 0)
        if not (isinstance(text, str) and has_key and is_place):
            raise UserError(
                f"{file.path}, line {number}: not a line of outputs.jsonl, an object with text and with mr or index: "
                "give such lines, plain text or a table"
            )
        rows.append(Row(number, mr.strip(), text.strip(), index))
    if not rows:
        raise UserError(f"{file.path} has no output: write one per instance")
    return rows


def _is_nested(text: str) -> bool:
    return isinstance(_loads(text), dict | list)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
