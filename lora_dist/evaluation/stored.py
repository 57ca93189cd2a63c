"""Scores as a run stores them: what is damaged counts as missing, as scoring writes it again."""

import csv
import io
from typing import Any

from lora_dist.data.e2e import one_line
from lora_dist.errors import UserError
from lora_dist.files import is_number, read_json
from lora_dist.metrics.readers import Instances
from lora_dist.metrics.suite import METRICS
from lora_dist.run_dir import RunDir

COLUMNS = ("BLEU", "sentBLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
"""Scores of an instance, by the names of the official script."""


def read_scores(run: RunDir) -> dict[str, Any] | None:
    """Read the object of scores.json; None if the file is missing or damaged."""
    try:
        scores = read_json(run.scores, f"{run.root} has no scores")
    except UserError:
        return None
    is_whole = (
        all(is_number(scores.get(name)) for name in METRICS)
        and _is_signature(scores.get("signature"))
        and ("bootstrap" not in scores or _are_intervals(scores["bootstrap"]))
        and ("slot_error_rate" not in scores or _is_slot_error_rate(scores["slot_error_rate"]))
    )
    return scores if is_whole else None


def read_sentence_scores(run: RunDir, instances: Instances) -> list[dict[str, float]] | None:
    """Read the scores of each output; None if the file is missing, damaged, or of other instances."""
    try:
        text = run.sentence_scores.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), dialect="excel-tab"))
        texts = [(one_line(row["src"]), one_line(row["sys_out"])) for row in rows]
        scores = [{name: float(row[name]) for name in COLUMNS} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):
        return None
    expected = [
        (one_line(mr), one_line(output)) for mr, output in zip(instances.sources, instances.outputs, strict=True)
    ]
    # Files of earlier versions have no MRs.
    same = len(texts) == len(expected) and all(
        output == own_output and mr in ("", own_mr)
        for (mr, output), (own_mr, own_output) in zip(texts, expected, strict=True)
    )
    return scores if same else None


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in METRICS)


def _are_intervals(value: Any) -> bool:
    pairs = [value.get(name) for name in METRICS] if isinstance(value, dict) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs)


def _is_slot_error_rate(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("rate") is None:
        return isinstance(value, dict) and isinstance(value.get("reason"), str)
    kinds = [value.get(kind) for kind in ("missing", "added", "contradicted")]
    are_counts = [isinstance(kind, dict) and all(map(is_number, kind.values())) for kind in kinds]
    return is_number(value["rate"]) and all(are_counts)
