"""The test set with the sentences of several runs side by side, as the data that the page's script shows."""

import json
from collections.abc import Sequence
from typing import Any

from lora_dist.data.e2e import parse_mr
from lora_dist.errors import UserError
from lora_dist.files import read_jsonl
from lora_dist.metrics.slots.errors import find_errors
from lora_dist.report.results import Result, sentence_scores

COLUMNS = ("sentBLEU", "METEOR", "ROUGE_L", "CIDEr")
"""Scores of a sentence by which the page sorts and filters."""


def browser_data(results: Sequence[Result]) -> dict[str, Any]:
    """What the script needs: `columns`, `runs` with one output or null per meaning representation, and `mrs`.

    The meaning representations are those of all runs, in the order of the first run that has them.
    """
    references: dict[str, list[str]] = {}
    outputs = []
    for result in results:
        rows = read_jsonl(result.run.outputs)
        groups = result.run.references_text.read_text(encoding="utf-8").split("\n\n")
        for row, group in zip(rows, groups, strict=False):
            references.setdefault(row["mr"], group.split("\n"))
        scores = sentence_scores(result.run)
        outputs.append({row["mr"]: _output(row, own) for row, own in zip(rows, scores, strict=True)})
    runs = [
        {"name": result.name, "outputs": [found.get(mr) for mr in references]}
        for result, found in zip(results, outputs, strict=True)
    ]
    mrs = [{"slots": _slots(mr), "references": texts} for mr, texts in references.items()]
    return {"columns": COLUMNS, "runs": runs, "mrs": mrs}


def _output(row: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    try:
        errors: list[tuple[str, str]] | None = [
            (e.kind, e.attribute) for e in find_errors(dict(parse_mr(row["mr"])), row["text"])
        ]
    except UserError:  # a corpus with values that E2E does not have
        errors = None
    return {"text": row["text"], "scores": [scores[name] for name in COLUMNS], "errors": errors}


def _slots(mr: str) -> list[tuple[str, str]]:
    """Attributes and values, or the whole text of an MR that is not in E2E's format."""
    try:
        return parse_mr(mr)
    except UserError:
        return [("mr", mr)]


def as_script(data: dict[str, Any]) -> str:
    """JSON that may stand in a script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
