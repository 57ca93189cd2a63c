"""Scores of files and of runs, with the signature that says what they may be compared with."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from lora_dist import metrics
from lora_dist.metrics.files import read_outputs, read_references
from lora_dist.run_dir import RunDir, read_json, write_json


def score_files(references: Path, outputs: Path, mteval: Literal["perl", "python"]) -> dict[str, Any]:
    """The object of scores.json: the five scores to 6 decimals, and their signature.

    Raises:
        UserError: if a file cannot be read, the files do not fit together, or there is no Java.
    """
    scores = metrics.score(read_references(references), read_outputs(outputs), mteval)
    files = {"references": _sha256(references), "outputs": _sha256(outputs)}
    signature = {**metrics.signature(mteval), **files}
    return {**{name: round(value, 6) for name, value in scores.items()}, "signature": signature}


def score_run(run: RunDir) -> dict[str, Any]:
    """Score a run's outputs into its scores.json, with what made the outputs in the signature."""
    scores = score_files(run.references_text, run.outputs_text, "perl")
    scores["signature"]["decode"] = read_json(run.decode_signature, f"{run.root} has not been decoded")
    write_json(run.scores, scores)
    return scores


def table(scores: dict[str, Any]) -> str:
    """The scores for a terminal, and below them what computed them."""
    lines = [f"{name:<8} {value:8.4f}" for name, value in scores.items() if name != "signature"]
    notes = [f"  {key}: {value}" for key, value in scores["signature"].items() if key != "decode"]
    return "\n".join([*lines, *notes])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
