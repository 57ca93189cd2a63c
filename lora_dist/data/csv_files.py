"""Read the rows of a corpus' CSV file; what does not fit is refused with its line."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from lora_dist.errors import UserError

_TRIPLE = re.compile(r"[^|\[\]:]+\|[^|\[\]]+\|[^|\[\]]+")
"""Such as `Alan Bean | birthPlace | Wheeler`; the LoRA authors' linearization of an MR has a colon."""


def read_pairs(path: Path, text: str, columns: tuple[int, int], width: int) -> list[tuple[str, str]]:
    """Read MR and reference of each row below the header.

    Args:
        path: the file, for messages.
        text: its content.
        columns: places of MR and reference in a row.
        width: cells of a row.

    Raises:
        UserError: if a row has another number of cells or an empty one, or is a triple as in WebNLG.
    """
    rows = records(path, text)
    next(rows, None)
    pairs = []
    for line, row in rows:
        if len(row) != width:
            what = "mr and ref" if width == 2 else f"{width} as in the header"
            raise UserError(
                f"{path}, line {line}: {len(row)} columns, not {what}: put a cell that has a comma in double quotes"
            )
        mr, reference = (row[place] for place in columns)
        for name, cell in (("mr", mr), ("ref", reference)):
            if not cell.replace("\0", " ").strip():
                raise UserError(f"{path}, line {line}: the {name} cell is empty ({cell!r}): fill it or delete the row")
        if _TRIPLE.match(mr):
            raise UserError(
                f"{path}, line {line}: the mr cell {mr!r} is a triple, as in WebNLG or DART, whose triples relate "
                "several entities and are scored by category with programs of their own: use attributes of one entity "
                "in slot notation, such as name[The Eagle], food[French]"
            )
        pairs.append((mr, reference))
    return pairs


def decode_text(path: Path, data: bytes) -> str:
    """Decode UTF-8 with or without byte-order mark; CRLF becomes a line feed."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the CSV records of `text`, each with the line number where it starts, skipping blank lines."""
    # StringIO ends a line at a line feed only; str.splitlines would also split references at U+2028 and others.
    # strict, because a quote that is never closed would otherwise silently swallow the rest of the file.
    reader = csv.reader(io.StringIO(text), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: not CSV ({error}): end lines with \\n or \\r\\n, close each quoted cell, "
            "and write a double quote inside one twice"
        ) from error
