"""Readers for references and outputs in the formats of the E2E NLG Challenge's script (`measure_scores.py`).

A file whose name ends in .csv or .tsv is a table. Its header identifies a column of sources (meaning representations)
and a column of texts; without a header it has just these two columns. The delimiter is a tab if the first line has one,
else a comma. Any other file is plain text. Outputs: one per line, where an empty line is an empty output. References:
one per line with an empty line between instances, or one per instance if there is no empty line.

The differences from the script:

1. Only a line feed ends a line. The script also splits at U+2028 and similar characters, which shifts all later rows.
2. A table may lack the header. The script's help allows this, but the script then fails.
3. What the script fails on or misreads without an error raises a `UserError` with the line and the reason.
"""

import csv
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from lora_dist.errors import UserError

_TABLE_NAME = re.compile(r"\.[ct]sv$", re.IGNORECASE)
# Prefixes of column names, case-insensitive.
_SOURCE = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[_ .-]act", re.IGNORECASE)
_OUTPUT = re.compile(r"out|ref|sys", re.IGNORECASE)
_REFERENCE = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)
_MOJIBAKE = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))


class _Row(NamedTuple):
    """One text of a file with its line number; `source` is empty in plain text."""

    line: int
    source: str
    text: str


class Instances(NamedTuple):
    """The instances to score: three lists with one element per instance."""

    references: list[list[str]]
    outputs: list[str]
    sources: list[str]
    """From the outputs' table, else from the references' table; empty strings if both files are plain text."""


def read_pair(references: Path, outputs: Path) -> Instances:
    """Read outputs and the references of each output.

    If both files are tables, they are joined by source: each output gets all references with its source, in any order.
    Otherwise they are paired in file order.

    Raises:
        UserError: as `read_references` and `read_outputs`, or if the files do not match.
    """
    rows = _read_output_rows(outputs)
    if _is_table(references) and any(row.source for row in rows):
        by_source: dict[str, list[str]] = {}
        for reference in _read_table(references, _REFERENCE):
            by_source.setdefault(reference.source, []).append(reference.text)
        for row in rows:
            if row.source not in by_source:
                raise UserError(
                    f"{outputs}, line {row.line}: {references} has no reference for {row.source!r}: correct one of them"
                )
        matched = [by_source[row.source] for row in rows]
        return Instances(matched, [row.text for row in rows], [row.source for row in rows])
    groups = _read_reference_groups(references)
    _check_lengths(references, groups, outputs, rows)
    sources = [row.source or group[0].source for row, group in zip(rows, groups, strict=True)]
    return Instances([[row.text for row in group] for group in groups], [row.text for row in rows], sources)


def read_references(path: Path) -> list[list[str]]:
    """Read the references of each instance, in file order.

    In a table, consecutive rows with the same source are one instance.

    Raises:
        UserError: if the file cannot be read, is not UTF-8 or is empty, an instance has no references (two consecutive
            empty lines, or one at the start), or the columns of a table are not as described above.
    """
    return [[row.text for row in group] for group in _read_reference_groups(path)]


def read_outputs(path: Path) -> list[str]:
    """Read the outputs, in file order.

    Raises:
        UserError: if the file cannot be read, is not UTF-8 or is empty, or the columns of a table are not as described
            above.
    """
    return [row.text for row in _read_output_rows(path)]


def read_sources(path: Path) -> list[str]:
    """Read the meaning representations: one per line of plain text, or the column of sources of a table.

    In a table, consecutive rows with the same source are one instance.

    Raises:
        UserError: if the file cannot be read, is not UTF-8 or is empty, or a table does not have exactly one column of
            sources.
    """
    if not _is_table(path):
        return _read_lines(path)
    rows = _read_fields(path)
    names = rows[0][1]
    columns = [column for column, name in enumerate(names) if _SOURCE.match(name)]
    if len(columns) != 1:
        raise UserError(
            f"{path}, line 1: {len(columns)} of {len(names)} columns look like sources: name exactly one of them mr"
        )
    return [source for source, _ in groupby(fields[columns[0]] for _, fields in rows[1:])]


def _check_lengths(references: Path, groups: Sequence[Sequence[_Row]], outputs: Path, rows: Sequence[_Row]) -> None:
    if len(groups) == len(rows):
        return
    if len(groups) > len(rows):
        unmatched = f"line {groups[len(rows)][0].line} of {references}"
    else:
        unmatched = f"line {rows[len(groups)].line} of {outputs}"
    raise UserError(
        f"{outputs} has {len(rows)} outputs but {references} has references for {len(groups)}: write one output per "
        f"instance, in the same order (the first unmatched one is {unmatched})"
    )


def _read_output_rows(path: Path) -> list[_Row]:
    if _is_table(path):
        return _read_table(path, _OUTPUT)
    return [_Row(number, "", line) for number, line in enumerate(_read_lines(path), start=1)]


def _read_reference_groups(path: Path) -> list[list[_Row]]:
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
    # A file without empty lines between texts has one reference per instance.
    return [[row] for row in groups[0]] if len(groups) == 1 else groups


def _read_table(path: Path, text_header: re.Pattern[str]) -> list[_Row]:
    rows = _read_fields(path)
    source, text, num_headers = _find_columns(path, rows[0][1], text_header)
    if len(rows) == num_headers:
        raise UserError(f"{path} has only a header: add rows")
    return [_Row(number, fields[source], fields[text]) for number, fields in rows[num_headers:]]


def _read_fields(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows of a table, including the header, as (line number, fields)."""
    lines = [(number, line) for number, line in enumerate(_read_lines(path), start=1) if line]
    if not lines:
        raise UserError(f"{path} has no row: add one with a source and a text per instance")
    texts = [_fix_mojibake(line) for _, line in lines]
    texts[0] = texts[0].replace("\ufeff", "")
    reader = csv.reader(texts, delimiter="\t" if "\t" in texts[0] else ",")
    try:
        # reader.line_num is the last line of the row just read, because quoted fields may span lines.
        rows = [(lines[reader.line_num - 1][0], fields) for fields in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {lines[reader.line_num - 1][0]}: {error}: correct its quotes") from error
    width = len(rows[0][1])
    for number, fields in rows:
        if len(fields) != width:
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns but the first line has {width}: quote texts with "
                'the delimiter, and write an empty last column as ""'
            )
    return rows


def _find_columns(path: Path, first_row: Sequence[str], text_header: re.Pattern[str]) -> tuple[int, int, int]:
    """Return the index of the source column, that of the text column, and the number of header lines (0 or 1)."""
    sources = [column for column, name in enumerate(first_row) if _SOURCE.match(name)]
    texts = [column for column, name in enumerate(first_row) if text_header.match(name)]
    if len(sources) == len(texts) == 1:
        return sources[0], texts[0], 1
    if not sources and not texts and len(first_row) == 2:
        return 0, 1, 0
    raise UserError(
        f"{path}, line 1: {len(sources)} of {len(first_row)} columns look like sources and {len(texts)} like texts: "
        "add a header with one column mr and one column ref"
    )


def _fix_mojibake(line: str) -> str:
    """Replace the wrongly encoded £ and é of some systems' outputs, as the script does."""
    for wrong, right in _MOJIBAKE:
        line = line.replace(wrong, right)
    return line


def _is_table(path: Path) -> bool:
    return _TABLE_NAME.search(path.name) is not None


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a file, stripped of surrounding whitespace."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file of references or outputs") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: this is not UTF-8: save the file as UTF-8") from error
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise UserError(f"{path} is empty: write one reference or output per line")
    return [line.strip() for line in lines]
