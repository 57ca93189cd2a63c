"""Data of the page's browser: the test set with the outputs of several runs side by side."""

import json
from collections.abc import Sequence
from typing import Any

from lora_dist.data.e2e import parse_mr
from lora_dist.errors import UserError
from lora_dist.metrics.slots.errors import find_slot_errors
from lora_dist.report.results import Result

COLUMNS = ("sentBLEU", "METEOR", "ROUGE_L", "CIDEr")
"""Sentence scores by which the page sorts and filters."""


def browser_data(results: Sequence[Result]) -> dict[str, Any]:
    """Build the data for the page's script: `columns`, `mrs`, and `runs` with one output or None per MR.

    The MRs are the union over the runs, in order of first appearance.
    """
    references: dict[str, list[str]] = {}
    outputs = []
    for result in results:
        mrs, texts = result.instances.sources, result.instances.outputs
        for mr, group in zip(mrs, result.instances.references, strict=True):
            references.setdefault(mr, group)
        entries = map(_output_entry, mrs, texts, result.sentences)
        outputs.append(dict(zip(mrs, entries, strict=True)))
    runs = [
        {"name": result.name, "outputs": [by_mr.get(mr) for mr in references]}
        for result, by_mr in zip(results, outputs, strict=True)
    ]
    shown = [{"slots": _parse_slots(mr), "references": group} for mr, group in references.items()]
    return {"columns": COLUMNS, "runs": runs, "mrs": shown}


def _output_entry(mr: str, text: str, scores: dict[str, float]) -> dict[str, Any]:
    try:
        errors: list[tuple[str, str]] | None = [
            (e.kind, e.attribute) for e in find_slot_errors(dict(parse_mr(mr)), text)
        ]
    except UserError:  # the corpus has other values than E2E
        errors = None
    return {"text": text, "scores": [scores[name] for name in COLUMNS], "errors": errors}


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
