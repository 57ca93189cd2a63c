"""Data of the page's browser: the test set with the outputs of several runs side by side."""

import json
from collections.abc import Sequence
from typing import Any

from lora_dist.data.e2e import parse_mr
from lora_dist.errors import UserError
from lora_dist.files import read_jsonl
from lora_dist.metrics.slots.errors import find_slot_errors
from lora_dist.report.results import Result, read_sentence_scores

COLUMNS = ("sentBLEU", "METEOR", "ROUGE_L", "CIDEr")
"""Sentence scores by which the page sorts and filters."""


def browser_data(results: Sequence[Result]) -> dict[str, Any]:
    """Build the data for the page's script: `columns`, `mrs`, and `runs` with one output or None per MR.

    The MRs are the union over the runs, in order of first appearance.
    """
    references: dict[str, list[str]] = {}
    outputs = []
    for result in results:
        rows = read_jsonl(result.run.outputs)
        groups = result.run.references_text.read_text(encoding="utf-8").split("\n\n")
        for row, group in zip(rows, groups, strict=False):
            references.setdefault(row["mr"], group.split("\n"))
        scores = read_sentence_scores(result.run)
        outputs.append({row["mr"]: _output_entry(row, score) for row, score in zip(rows, scores, strict=True)})
    runs = [
        {"name": result.name, "outputs": [by_mr.get(mr) for mr in references]}
        for result, by_mr in zip(results, outputs, strict=True)
    ]
    mrs = [{"slots": _parse_slots(mr), "references": texts} for mr, texts in references.items()]
    return {"columns": COLUMNS, "runs": runs, "mrs": mrs}


def _output_entry(row: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    try:
        errors: list[tuple[str, str]] | None = [
            (e.kind, e.attribute) for e in find_slot_errors(dict(parse_mr(row["mr"])), row["text"])
        ]
    except UserError:  # the corpus has other values than E2E
        errors = None
    return {"text": row["text"], "scores": [scores[name] for name in COLUMNS], "errors": errors}


def _parse_slots(mr: str) -> list[tuple[str, str]]:
    """Parse an MR into attributes and values; an MR in another format becomes one slot with its whole text."""
    try:
        return parse_mr(mr)
    except UserError:
        return [("mr", mr)]


def to_script_json(data: dict[str, Any]) -> str:
    """Serialize to JSON for a script element, escaped so that no text can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
