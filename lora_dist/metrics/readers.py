"""Readers for references and outputs in the formats of the E2E NLG Challenge's script (`measure_scores.py`).

Plain text has one output per line, where an empty line is an empty output, and one reference per line with an empty
line between instances, or one per instance if there is no empty line. `tables` has the format of tables. Outputs may
also be the lines of a run's outputs.jsonl. `text_files` has encodings and line ends.

An instance is a meaning representation (MR) with its references and one output. Outputs with sources belong to the
references with the same source, whatever their order; others to the references in the same place.

The differences from the script:

1. Only the ends of lines in `text_files` end a line. The script also splits at U+2028 and similar characters, which
   shifts all later rows.
2. A table may lack the header. The script's help allows this, but the script then fails.
3. Equal outputs for one MR are one instance. The script scores them as several, which counts their MR several times.
4. What the script fails on or misreads without an error raises a `UserError` with the line and the reason.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from lora_dist.errors import UserError
from lora_dist.metrics.rows import Row, is_json, json_rows, plain_rows
from lora_dist.metrics.tables import OUTPUT, REFERENCE, is_table, source_column, table_rows
from lora_dist.metrics.text_files import TextFile

log = logging.getLogger(__name__)


class Instances(NamedTuple):
    """The instances to score, in the order of the outputs: four lists with one element per instance."""

    references: list[list[str]]
    outputs: list[str]
    sources: list[str]
    """MRs; empty strings if no file has them."""
    places: list[int]
    """Places of the instances among those of the references, 0 <= place < total."""
    total: int
    """Instances of the references, with or without output."""


class _Group(NamedTuple):
    """The references of one instance."""

    source: str
    """Its MR; empty in plain text."""
    rows: list[Row]


def read_pair(
    references: TextFile, outputs: TextFile, mrs: Sequence[str] | None = None, *, partial: bool = False
) -> Instances:
    """Read outputs and the references of each output.

    Args:
        references: plain text or a table.
        outputs: plain text, a table, or the lines of a run's outputs.jsonl.
        mrs: MRs of the instances; in the references' order where these are plain text.
        partial: whether instances of the references may lack an output.

    Raises:
        UserError: if a file is not as described above, the files do not match, or an MR has different outputs.
    """
    rows = _output_rows(outputs)
    groups = _reference_groups(references, is_one_instance=len(rows) == 1)
    if mrs is not None and not is_table(references):
        groups = _name_groups(references, groups, mrs)
    found: dict[int, Row] = {}
    for place, row in zip(_find_places(references, groups, outputs, rows), rows, strict=True):
        first = found.setdefault(place, row)
        if first.text != row.text:
            raise UserError(
                f"{outputs.path}, lines {first.line} and {row.line}: different outputs for one instance: keep one of "
                "them, as an instance is a meaning representation"
            )
    if len(found) < len(rows):
        log.warning("%s: %d outputs for %d instances; equal ones are merged", outputs.path, len(rows), len(found))
    missing = [group.source or f"index {place}" for place, group in enumerate(groups) if place not in found]
    if missing and not partial:
        raise UserError(
            f"{outputs.path} has no output for {len(missing)} of the {len(groups)} instances of {references.path}, "
            f"such as {missing[0]}: add them, or score the others with --partial"
        )
    sources = [groups[place].source or row.source for place, row in found.items()]
    if mrs is not None and (unknown := sorted(set(sources).difference(mrs))):
        raise UserError(f"{unknown[0]!r} of {references.path} is not in --mrs: give the references' file there, too")
    texts = [[row.text for row in groups[place].rows] for place in found]
    return Instances(texts, [row.text for row in found.values()], sources, list(found), len(groups))


def read_sources(file: TextFile) -> list[str]:
    """Read MRs: one per line of plain text or of a run's outputs.jsonl, or the column of sources of a table.

    In a table, consecutive rows with the same source are one instance.

    Raises:
        UserError: if the file has no MRs, or a table does not have exactly one column of sources.
    """
    if is_table(file):
        return [source for source, _ in groupby(source_column(file))]
    rows = json_rows(file) if is_json(file) else None
    if rows is None:
        return [row.text for row in plain_rows(file)]
    if not all(row.source for row in rows):
        raise UserError(f"{file.path} has lines without mr: name a file of meaning representations")
    return [row.source for row in rows]


def _output_rows(file: TextFile) -> list[Row]:
    if is_table(file):
        return table_rows(file, OUTPUT)
    return json_rows(file) if is_json(file) else plain_rows(file)


def _reference_groups(file: TextFile, *, is_one_instance: bool) -> list[_Group]:
    """Group the references by instance; those of plain text without empty lines are of one instance, or of one each."""
    if is_table(file):
        return _group_by_source((row.source, [row]) for row in table_rows(file, REFERENCE))
    if is_json(file):
        raise UserError(f"{file.path} holds JSON: give references as plain text or as a table")
    groups: list[list[Row]] = [[]]
    for row in plain_rows(file):
        if row.text:
            groups[-1].append(row)
        elif groups[-1]:
            groups.append([])
        else:
            raise UserError(
                f"{file.path}, line {row.line}: an instance has no reference: remove this empty line or add one"
            )
    if not groups[-1]:
        del groups[-1]
    if len(groups) == 1 and not is_one_instance:
        groups = [[row] for row in groups[0]]
    return [_Group("", rows) for rows in groups]


def _group_by_source(parts: Iterable[tuple[str, list[Row]]]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for source, rows in parts:
        groups.setdefault(source, _Group(source, [])).rows.extend(rows)
    return list(groups.values())


def _name_groups(references: TextFile, groups: Sequence[_Group], mrs: Sequence[str]) -> list[_Group]:
    """Give the references of plain text their MRs, which are in the same order."""
    for names in (mrs, list(dict.fromkeys(mrs))):
        if len(names) == len(groups):
            return _group_by_source((name, group.rows) for name, group in zip(names, groups, strict=True))
    raise UserError(
        f"there are {len(mrs)} meaning representations for the {len(groups)} instances of {references.path}: give one "
        "per instance, in the same order"
    )


def _find_places(
    references: TextFile, groups: Sequence[_Group], outputs: TextFile, rows: Sequence[Row]
) -> Sequence[int]:
    """Return for each output the place of its group: by source, by index, or in order."""
    by_source = {group.source: place for place, group in enumerate(groups) if group.source}
    has_sources = any(row.source for row in rows)
    if by_source and has_sources:
        for row in rows:
            if row.source not in by_source:
                raise UserError(
                    f"{outputs.path}, line {row.line}: {references.path} has no reference for {row.source!r}: correct "
                    "one of them"
                )
        return [by_source[row.source] for row in rows]
    given = [row.place for row in rows if row.place is not None]
    if len(given) == len(rows):
        if max(given) >= len(groups):
            raise UserError(
                f"{outputs.path} has index {max(given)} but {references.path} has references for {len(groups)} "
                "instances: correct one of them"
            )
        return given
    places = _places_in_order(groups, rows, has_sources=has_sources)
    _check_lengths(references, groups, outputs, rows, places)
    return places


def _places_in_order(groups: Sequence[_Group], rows: Sequence[Row], *, has_sources: bool) -> list[int]:
    """Return the place of each output if the instances are in the references' order.

    With sources, each new one is the next instance. Without, there is one output per instance or per reference.
    """
    if has_sources:
        order = {source: place for place, source in enumerate(dict.fromkeys(row.source for row in rows))}
        return [order[row.source] for row in rows]
    lines = sorted((row.line, place) for place, group in enumerate(groups) for row in group.rows)
    return [place for _, place in lines] if len(rows) == len(lines) else list(range(len(rows)))


def _check_lengths(
    references: TextFile, groups: Sequence[_Group], outputs: TextFile, rows: Sequence[Row], places: Sequence[int]
) -> None:
    count = len(set(places))
    if count == len(groups):
        return
    if count < len(groups):
        unmatched = f"line {groups[count].rows[0].line} of {references.path}"
    else:
        unmatched = f"line {rows[places.index(len(groups))].line} of {outputs.path}"
    raise UserError(
        f"{outputs.path} has {count} outputs but {references.path} has references for {len(groups)}: write one output "
        f"per instance, in the same order (the first unmatched one is {unmatched})"
    )
