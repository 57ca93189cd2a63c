"""Rows of metrics.jsonl as its readers find them: a kill or a power cut may have damaged some of its lines."""

import json
import logging
from pathlib import Path
from typing import Any

from lora_dist.files import is_number

log = logging.getLogger(__name__)

DEV = "dev_"
"""Prefix of the names of dev scores."""

STEP_FIELDS = ("loss", "lr", "examples_per_second")
"""Numbers that the row of a logged step has."""


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read the rows of logged steps and of dev evaluations, and drop damaged ones; a missing file has none."""
    if not file.is_file():
        return []
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").split("\n") if line]
    rows = [row for row in map(_loads, lines) if _is_row(row)]
    if len(rows) < len(lines):
        log.warning("%s: %d of %d lines are damaged and dropped", file, len(lines) - len(rows), len(lines))
    return rows


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_row(row: Any) -> bool:
    if not (isinstance(row, dict) and type(row.get("step")) is int and row["step"] > 0):
        return False
    numbers = [row.get(name) for name in (("dev_loss",) if "dev_loss" in row else STEP_FIELDS)]
    memory = row.get("peak_memory_gib", [])
    if not (isinstance(memory, list) and all(map(is_number, [*numbers, *memory]))):
        return False
    return "dev_loss" in row or row["examples_per_second"] > 0
