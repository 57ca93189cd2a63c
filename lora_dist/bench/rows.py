"""Measurements of our programs and others that do the same work, in one run on one machine."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    value: float
    unit: str
    ratio: float | None
    """Cost relative to ours in the same precision: 2 is twice our time, or half our rate. Rows that compare something
    else say so in their name. None if ours was not measured."""


def rows_table(rows: Sequence[Row]) -> str:
    """Format rows as a table for a terminal."""
    width = max(len(row.name) for row in rows)
    return "\n".join(f"{row.name:<{width}} {row.value:10.3f} {row.unit:<12} {_times(row.ratio)}" for row in rows)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:8.2f} x"
