"""Reading references and outputs in the formats of the E2E NLG Challenge's script (`measure_scores.py`).

A name that ends in .csv or .tsv holds a table: a column of sources (meaning representations) and one of texts, found
by their header, or just these two without a header. The delimiter is a tab if the first line has one, else a comma.
Any other name holds plain text: one output a line, an empty line being an empty output; references with an empty line
between instances, or, without any empty line, one reference an instance.

Apart from three points everything is read as the script reads it: only a line feed ends a line (the script's reader
also splits at U+2028 and the like, which shifts all later rows); a table may lack the header (as its help says, though
it then stops with an error); and what it stops at, or silently misreads, is a `UserError` that says where and why.
"""

import csv
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from lora_dist.errors import UserError

_TABLE = re.compile(r"\.[ct]sv$", re.IGNORECASE)
# Beginnings of the names of columns, whatever their case.
_SOURCE = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[_ .-]act", re.IGNORECASE)
_OUTPUT = re.compile(r"out|ref|sys", re.IGNORECASE)
_REFERENCE = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)
_MISENCODED = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))


class _Row(NamedTuple):
    """A text of a file; `source` is empty in plain text."""

    line: int
    source: str
    text: str


class Instances(NamedTuple):
    """What is to be scored: three lists with one entry an instance."""

    references: list[list[str]]
    outputs: list[str]
    sources: list[str]
    """Of the outputs' table, else of the references' table; empty texts if both files are plain text."""


def read_pair(references: Path, outputs: Path) -> Instances:
    """The references of each output, and the outputs: what the script scores for these two files.

    If both are tables, each output gets all references with its source, wherever they stand; otherwise the files go
    together in order.

    Raises:
        UserError: as `read_references` and `read_outputs`, or if the files do not fit together.
    """
    rows = _read_output_rows(outputs)
    if _is_table(references) and any(row.source for row in rows):
        by_source: dict[str, list[str]] = {}
        for reference in _read_table(references, _REFERENCE):
            by_source.setdefault(reference.source, []).append(reference.text)
        for row in rows:
            if row.source not in by_source:
                raise UserError(f"{outputs}, line {row.line}: {references} has no reference for {row.source!r}")
        groups = [by_source[row.source] for row in rows]
        return Instances(groups, [row.text for row in rows], [row.source for row in rows])
    read = _read_groups(references)
    _check_lengths(references, read, outputs, rows)
    sources = [row.source or group[0].source for row, group in zip(rows, read, strict=True)]
    return Instances([[row.text for row in group] for group in read], [row.text for row in rows], sources)


def read_references(path: Path) -> list[list[str]]:
    """The references of each instance, in the order of the file; in a table, rows that follow each other with the same
    source are one instance.

    Raises:
        UserError: if the file cannot be read, is not UTF-8, is empty, has an instance without references (two empty
            lines in a row, or one at the start), or is a table with columns that do not fit.
    """
    return [[row.text for row in group] for group in _read_groups(path)]


def read_outputs(path: Path) -> list[str]:
    """The outputs, in the order of the file.

    Raises:
        UserError: if the file cannot be read, is not UTF-8, is empty, or is a table with columns that do not fit.
    """
    return [row.text for row in _read_output_rows(path)]


def read_sources(path: Path) -> list[str]:
    """The meaning representations of the instances: one a line of plain text, or the column of sources of a table.

    In a table, rows that follow each other with the same source are one instance.

    Raises:
        UserError: if the file cannot be read, is not UTF-8, is empty, or is a table without one column of sources.
    """
    if not _is_table(path):
        return _read_lines(path)
    rows = _read_fields(path)
    names = rows[0][1]
    columns = [column for column, name in enumerate(names) if _SOURCE.match(name)]
    if len(columns) != 1:
        raise UserError(
            f"{path}, line 1: {len(columns)} of {len(names)} columns look like sources: name one of them mr"
        )
    return [source for source, _ in groupby(fields[columns[0]] for _, fields in rows[1:])]


def _check_lengths(references: Path, groups: Sequence[Sequence[_Row]], outputs: Path, rows: Sequence[_Row]) -> None:
    if len(groups) == len(rows):
        return
    if len(groups) > len(rows):
        parting = f"{references} goes on at line {groups[len(rows)][0].line}"
    else:
        parting = f"{outputs} goes on at line {rows[len(groups)].line}"
    raise UserError(
        f"{outputs} has {len(rows)} outputs but {references} has references for {len(groups)}: give one output for "
        f"each instance, in the same order (where the one ends, {parting})"
    )


def _read_output_rows(path: Path) -> list[_Row]:
    if _is_table(path):
        return _read_table(path, _OUTPUT)
    return [_Row(number, "", line) for number, line in enumerate(_read_lines(path), start=1)]


def _read_groups(path: Path) -> list[list[_Row]]:
    groups: list[list[_Row]] = [[]]
    if _is_table(path):
        for row in _read_table(path, _REFERENCE):
            if groups[-1] and groups[-1][-1].source != row.source:
                groups.append([])
            groups[-1].append(row)
        return groups
    for number, line in enumerate(_read_lines(path), start=1):
        if line:
            groups[-1].append(_Row(number, "", line))
        elif groups[-1]:
            groups.append([])
        else:
            raise UserError(f"{path}, line {number}: an instance has no reference: remove this empty line or add one")
    if not groups[-1]:
        del groups[-1]
    # A file without an empty line inside has one reference an instance.
    return [[row] for row in groups[0]] if len(groups) == 1 else groups


def _read_table(path: Path, text_header: re.Pattern[str]) -> list[_Row]:
    rows = _read_fields(path)
    source, text, headers = _find_columns(path, rows[0][1], text_header)
    if len(rows) == headers:
        raise UserError(f"{path} has only a header: add rows")
    return [_Row(number, fields[source], fields[text]) for number, fields in rows[headers:]]


def _read_fields(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a table, the header among them, each with the number of its line."""
    lines = [(number, line) for number, line in enumerate(_read_lines(path), start=1) if line]
    if not lines:
        raise UserError(f"{path} has no row: give one with a source and a text for each instance")
    texts = [_repair(line) for _, line in lines]
    texts[0] = texts[0].replace("\ufeff", "")
    reader = csv.reader(texts, delimiter="\t" if "\t" in texts[0] else ",")
    try:
        # reader.line_num is the last line of the row just read: quoted fields may go over several lines.
        rows = [(lines[reader.line_num - 1][0], fields) for fields in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {lines[reader.line_num - 1][0]}: {error}: correct its quotes") from error
    width = len(rows[0][1])
    for number, fields in rows:
        if len(fields) != width:
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns where the first line has {width}: quote texts that hold "
                'the delimiter, and write an empty last one as ""'
            )
    return rows


def _find_columns(path: Path, first: Sequence[str], text_header: re.Pattern[str]) -> tuple[int, int, int]:
    """The columns of sources and of texts, and the number of header lines (0 or 1)."""
    sources = [column for column, name in enumerate(first) if _SOURCE.match(name)]
    texts = [column for column, name in enumerate(first) if text_header.match(name)]
    if len(sources) == len(texts) == 1:
        return sources[0], texts[0], 1
    if not sources and not texts and len(first) == 2:
        return 0, 1, 0
    raise UserError(
        f"{path}, line 1: {len(sources)} of {len(first)} columns look like sources and {len(texts)} like texts: give "
        "it a header with one column mr and one column ref"
    )


def _repair(line: str) -> str:
    """Puts right the pounds and e-acutes that some systems' outputs had mis-encoded."""
    for wrong, right in _MISENCODED:
        line = line.replace(wrong, right)
    return line


def _is_table(path: Path) -> bool:
    return _TABLE.search(path.name) is not None


def _read_lines(path: Path) -> list[str]:
    """The lines of a file without the blanks around them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file of references or outputs") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: this is not UTF-8: save the file as UTF-8") from error
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise UserError(f"{path} is empty: give a file of references or outputs")
    return [line.strip() for line in lines]
