"""Measurements of our programs next to others that do the same, in one run on one machine."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    value: float
    unit: str
    ratio: float
    """How many times ours this is; ours in the same precision where there are several."""


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    width = max(len(row.name) for row in rows)
    return "\n".join(f"{row.name:<{width}} {row.value:10.3f} {row.unit:<12} {row.ratio:8.2f} x" for row in rows)
