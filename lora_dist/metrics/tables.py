"""Tables of references or outputs: files whose name ends in .csv or .tsv.

The header identifies a column of sources (meaning representations) and a column of texts; without a header a table has
just these two columns. The delimiter is a tab if the first line has one, else a comma.

A cell that begins with a double quote ends at the next quote, as in the official script. That quote may be on a later
line only if the whole record is quoted as CSV demands (RFC 4180) and no line inside it is a row of the table: a quote
that is never closed would otherwise swallow rows.
"""

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple

from lora_dist.errors import UserError
from lora_dist.metrics.rows import Row
from lora_dist.metrics.text_files import TextFile

_NAME = re.compile(r"\.[ct]sv$", re.IGNORECASE)
# Prefixes of column names, case-insensitive.
SOURCE = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[_ .-]act", re.IGNORECASE)
OUTPUT = re.compile(r"out|ref|sys", re.IGNORECASE)
REFERENCE = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)
_MOJIBAKE = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))


class _Record(NamedTuple):
    line: int
    """Number of its first line."""
    fields: list[str]
    lines: list[str]
    """Its own lines of the file, without blank ones."""


def is_table(file: TextFile) -> bool:
    """Return whether the file's name is that of a table."""
    return _NAME.search(file.path.name) is not None


def table_rows(file: TextFile, text_header: re.Pattern[str]) -> list[Row]:
    """Return the rows of a table below its header.

    Args:
        file: the table.
        text_header: `OUTPUT` or `REFERENCE`, which matches the name of the column of texts.

    Raises:
        UserError: if the columns or quotes are not as described above, or there are no rows.
    """
    delimiter, records = _records(file)
    source, text, num_headers = _find_columns(file, records[0].fields, text_header)
    _refuse_swallowed_rows(file, delimiter, records, source)
    if len(records) == num_headers:
        raise UserError(f"{file.path} has only a header: add rows")
    return [Row(record.line, record.fields[source], record.fields[text]) for record in records[num_headers:]]


def source_column(file: TextFile) -> list[str]:
    """Return the column of sources of a table, whatever its other columns.

    Raises:
        UserError: if the quotes are not as described above, or the header does not name exactly one column of sources.
    """
    delimiter, records = _records(file)
    names = records[0].fields
    columns = [column for column, name in enumerate(names) if SOURCE.match(name)]
    if len(columns) != 1:
        raise UserError(
            f"{file.path}, line 1: {len(columns)} of {len(names)} columns look like sources: name exactly one of them "
            "mr"
        )
    _refuse_swallowed_rows(file, delimiter, records, columns[0])
    return [record.fields[columns[0]] for record in records[1:]]


def _records(file: TextFile) -> tuple[str, list[_Record]]:
    """Return the delimiter, and the records including the header."""
    numbers = [number for number, line in enumerate(file.lines, start=1) if line]
    if not numbers:
        raise UserError(f"{file.path} has no row: add one with a source and a text per instance")
    lines = [_fix_mojibake(file.lines[number - 1]) for number in numbers]
    delimiter = "\t" if "\t" in lines[0] else ","
    # A quote that is not closed in the last line takes in the empty one, too.
    reader = csv.reader([*lines, ""], delimiter=delimiter)
    records: list[_Record] = []
    start = 0
    try:
        for fields in reader:
            if fields:
                record = _Record(numbers[start], [field.strip() for field in fields], lines[start : reader.line_num])
                if reader.line_num - start > 1:
                    _require_closed_quotes(file, delimiter, record)
                records.append(record)
            start = reader.line_num
    except csv.Error as error:
        raise UserError(f"{file.path}, line {numbers[start]}: {error}: correct its quotes") from error
    width = len(records[0].fields)
    for record in records:
        if len(record.fields) != width:
            raise UserError(
                f"{file.path}, line {record.line}: {len(record.fields)} columns but the first line has {width}: quote "
                'texts with the delimiter, and write an empty last column as ""'
            )
    return delimiter, records


def _require_closed_quotes(file: TextFile, delimiter: str, record: _Record) -> None:
    try:
        list(csv.reader(record.lines, delimiter=delimiter, strict=True))
    except csv.Error:
        raise _open_quote(file, record) from None


def _refuse_swallowed_rows(file: TextFile, delimiter: str, records: Sequence[_Record], source: int) -> None:
    """Refuse a cell of several lines if a row of the table is one of them.

    Commas are common in texts, so there a row is one whose source another row has, too.
    """
    sources = {record.fields[source] for record in records}
    for record in records:
        for line in record.lines[1:]:
            fields = next(csv.reader([line], delimiter=delimiter))
            is_as_wide = len(fields) == len(record.fields)
            if is_as_wide and (delimiter == "\t" or fields[source].strip() in sources):
                raise _open_quote(file, record)


def _open_quote(file: TextFile, record: _Record) -> UserError:
    return UserError(
        f"{file.path}, line {record.line}: a double quote opens a cell and is not closed before the next row: close "
        "it, or write the cell in quotes and the quote in it twice"
    )


def _find_columns(file: TextFile, first_row: Sequence[str], text_header: re.Pattern[str]) -> tuple[int, int, int]:
    """Return the index of the source column, that of the text column, and the number of header lines (0 or 1)."""
    sources = [column for column, name in enumerate(first_row) if SOURCE.match(name)]
    texts = [column for column, name in enumerate(first_row) if text_header.match(name)]
    if len(sources) == len(texts) == 1:
        return sources[0], texts[0], 1
    if not sources and not texts and len(first_row) == 2:
        return 0, 1, 0
    raise UserError(
        f"{file.path}, line 1: {len(sources)} of {len(first_row)} columns look like sources and {len(texts)} like "
        "texts: add a header with one column mr and one column ref"
    )


def _fix_mojibake(line: str) -> str:
    """Replace the wrongly encoded £ and é of some systems' outputs, as the script does."""
    for wrong, right in _MOJIBAKE:
        line = line.replace(wrong, right)
    return line
