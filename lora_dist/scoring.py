"""Scores of files and of runs, with the signature that says what they may be compared with."""

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lora_dist import metrics
from lora_dist.config import UserError
from lora_dist.e2e import one_line
from lora_dist.metrics.files import Instances, read_pair
from lora_dist.metrics.mteval import Variant
from lora_dist.metrics.sentences import sentence_scores
from lora_dist.run_dir import RunDir, read_json, write_json, write_text


def score_files(
    references: Path, outputs: Path, variant: Variant = "perl", *, sentence_level: Path | None = None
) -> dict[str, Any]:
    """The object of scores.json: the five scores to 6 decimals, and their signature.

    Args:
        references: Human references, in any format of `metrics.files`.
        outputs: The outputs, likewise.
        variant: Of BLEU and NIST.
        sentence_level: Also write the scores of each instance to this file (see `metrics.sentences`).

    Raises:
        UserError: if a file cannot be read or written, the files do not fit together, or there is no Java.
    """
    instances = read_pair(references, outputs)
    measured = metrics.measure(instances.references, instances.outputs, variant)
    scores: dict[str, Any] = {name: round(value, 6) for name, value in measured.scores().items()}
    if sentence_level is not None:
        columns = sentence_scores(instances.references, instances.outputs, measured)
        save_text(sentence_level, sentence_table(instances, columns))
    files = {"references": _sha256(references), "outputs": _sha256(outputs)}
    scores["signature"] = {**metrics.signature(variant), **files}
    return scores


def score_run(run: RunDir) -> dict[str, Any]:
    """Score a run's outputs into its scores.json, with what made the outputs in the signature."""
    scores = score_files(run.references_text, run.outputs_text)
    scores["signature"]["decode"] = read_json(run.decode_signature, f"{run.root} has not been decoded")
    write_json(run.scores, scores)
    return scores


def table(scores: Mapping[str, Any]) -> str:
    """The scores for a terminal, and below them what computed them."""
    lines = [f"{name:<8} {scores[name]:8.4f}" for name in metrics.METRICS]
    notes = [f"  {key}: {value}" for key, value in scores["signature"].items() if key != "decode"]
    return "\n".join([*lines, *notes])


def sentence_table(instances: Instances, columns: Mapping[str, NDArray[Any]]) -> str:
    """The instances and their scores to 4 decimals as tab-separated text, in the official script's columns.

    A line separator in a text becomes a space, and a text with a tab or a double quote stands in double quotes, so
    that an instance is always one line.
    """
    written = io.StringIO()
    writer = csv.writer(written, dialect="excel-tab", lineterminator="\n")
    writer.writerow(["src", "sys_out", *columns])
    for source, output, *values in zip(instances.sources, instances.outputs, *columns.values(), strict=True):
        writer.writerow([one_line(source), one_line(output), *(f"{value:.4f}" for value in values)])
    return written.getvalue()


def save_text(path: Path, text: str) -> None:
    """Write a file that a user asked for.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
