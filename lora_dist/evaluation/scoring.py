"""Scores of files and of runs, with the signature that says what they may be compared with."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_dist.data.e2e import one_line, parse_mr
from lora_dist.errors import UserError
from lora_dist.evaluation.model_card import write_card
from lora_dist.files import read_json, read_jsonl, save_text, write_json
from lora_dist.metrics import bootstrap
from lora_dist.metrics import suite as metrics
from lora_dist.metrics.mteval import Variant
from lora_dist.metrics.readers import Instances, read_pair
from lora_dist.metrics.sentences import sentence_scores
from lora_dist.metrics.slots.errors import count_errors
from lora_dist.run_dir import RunDir

SEED = 0
"""Of the bootstrap: it draws the same instances for everyone."""
RESAMPLES = 1000
"""Of a run's outputs, for the intervals in its scores.json."""


def score_files(
    references: Path,
    outputs: Path,
    variant: Variant = "perl",
    *,
    mrs: Sequence[str] | None = None,
    sentence_level: Path | None = None,
    resamples: int | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """The object of scores.json: the five scores to 6 decimals, what else was asked for, and the signature.

    Args:
        references: Human references, in any format of `metrics.files`.
        outputs: The outputs, likewise.
        variant: Of BLEU and NIST.
        mrs: Adds `slot_error_rate`, of the outputs for these meaning representations (see `metrics.slots`).
        sentence_level: Also write the scores of each instance to this file (see `metrics.sentences`).
        resamples: Adds `bootstrap`: 95 % intervals from so many resamples (see `metrics.bootstrap`).
        against: Adds `against`: the scores less those of these outputs of another system, with 95 % intervals and the
            p-values of a paired test; needs `resamples`.

    Raises:
        UserError: if a file cannot be read or written, the files do not fit together, there are too few resamples, or
            there is no Java.
    """
    if resamples is None and against is not None:
        raise UserError(f"--against {against} needs to know how often to resample: add --bootstrap 1000")
    if resamples is not None and resamples < bootstrap.LEAST_RESAMPLES:
        raise UserError(f"--bootstrap {resamples} is too few for 95 % intervals: give 1000")
    instances = read_pair(references, outputs)
    other = None if against is None else _other_outputs(instances, references, against)
    if mrs is not None:
        slot_errors = _slot_errors(mrs, instances.outputs)
        instances = instances._replace(sources=list(mrs))
    measured = metrics.measure(instances.references, instances.outputs, variant)
    scores: dict[str, Any] = _rounded(measured.scores())
    if sentence_level is not None:
        columns = sentence_scores(instances.references, instances.outputs, measured)
        save_text(sentence_level, sentence_table(instances, columns))
    if resamples is not None:
        samples = bootstrap.resampled_scores(measured, resamples, SEED)
        scores["bootstrap"] = {"resamples": resamples, "seed": SEED, **_rounded(bootstrap.intervals(samples))}
        if against is not None and other is not None:
            others = metrics.measure(other.references, other.outputs, variant)
            compared = _compare(measured, others, samples)
            scores["against"] = {"outputs": _sha256(against), **compared}
    if mrs is not None:
        scores["slot_error_rate"] = slot_errors
    files = {"references": _sha256(references), "outputs": _sha256(outputs)}
    scores["signature"] = {**metrics.signature(variant), **files}
    return scores


def _other_outputs(instances: Instances, references: Path, against: Path) -> Instances:
    """Another system's outputs for the same instances."""
    other = read_pair(references, against)
    if other.references != instances.references:
        raise UserError(f"{against} has its outputs in another order than the outputs it is compared with: sort it")
    return other


def _slot_errors(mrs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """The rate, the number of slots, and for each kind of error its counts by attribute."""
    if len(mrs) != len(outputs):
        raise UserError(f"there are {len(mrs)} meaning representations for {len(outputs)} outputs: give one an output")
    counts = count_errors([dict(parse_mr(mr)) for mr in mrs], outputs)
    return {"rate": round(counts.rate, 6), **asdict(counts)}


def _compare(
    measured: metrics.Measurements, others: metrics.Measurements, samples: NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """For each metric what `measured` has more than `others`, its 95 % interval and p-value."""
    differences = np.subtract(list(measured.scores().values()), list(others.scores().values()))
    pairs = samples - bootstrap.resampled_scores(others, len(samples), SEED)
    return {
        "difference": _rounded(dict(zip(metrics.METRICS, differences.tolist(), strict=True))),
        "interval": _rounded(bootstrap.intervals(pairs)),
        "p": _rounded(bootstrap.p_values(differences, pairs)),
    }


def score_run(run: RunDir, variant: Variant = "perl") -> dict[str, Any]:
    """Score a run's outputs into scores.json, each sentence into a table, and all into the adapter's model card.

    The slot error rate of a corpus that has other values than E2E is null, with the reason. There are no intervals
    where NIST is not defined for every resample, as with a handful of very short outputs.

    Raises:
        UserError: if the run has no outputs, or Java is not there or fails; scores.json stays as it was then.
    """
    paths = run.references_text, run.outputs_text
    try:
        scores = score_files(*paths, variant, sentence_level=run.sentence_scores, resamples=RESAMPLES)
    except bootstrap.UndefinedResample:
        scores = score_files(*paths, variant, sentence_level=run.sentence_scores)
    decoding = read_json(run.decode_signature, f"{run.root} has not been decoded")
    rows = read_jsonl(run.outputs)
    signature = scores.pop("signature")
    try:
        scores["slot_error_rate"] = _slot_errors([row["mr"] for row in rows], [row["text"] for row in rows])
    except UserError as error:
        scores["slot_error_rate"] = {"rate": None, "reason": str(error)}
    scores["signature"] = {**signature, "decode": decoding}
    write_json(run.scores, scores)
    if run.adapter.is_dir():
        write_card(run)
    return scores


def variant_of(scores: Mapping[str, Any]) -> Variant:
    """Which of the official script's programs computed BLEU and NIST of a scores.json."""
    return "python" if scores["signature"]["BLEU"].startswith("pymteval") else "perl"


def table(scores: Mapping[str, Any]) -> str:
    """The scores for a terminal, with their intervals where there are some, and below them what computed them."""
    lines = [f"{name:<8} {scores[name]:8.4f}" for name in metrics.METRICS]
    if intervals := scores.get("bootstrap"):
        lines = [f"{line}  [{low:.4f}, {high:.4f}]" for line, (low, high) in zip(lines, _each(intervals), strict=True)]
    if against := scores.get("against"):
        rows = zip(
            metrics.METRICS, *map(_each, (against["difference"], against["interval"], against["p"])), strict=True
        )
        lines.append("less the other outputs' scores, and p of a paired one-sided test:")
        lines += [
            f"{name:<8} {more:+8.4f}  [{low:+.4f}, {high:+.4f}]  p {p:.4f}" for name, more, (low, high), p in rows
        ]
    if slots := scores.get("slot_error_rate"):
        lines.append(_slot_line(slots))
    notes = [f"  {key}: {value}" for key, value in scores["signature"].items() if key != "decode"]
    return "\n".join([*lines, *notes])


def _slot_line(slots: Mapping[str, Any]) -> str:
    if slots["rate"] is None:
        return f"no slot error rate: {slots['reason']}"
    counts = ", ".join(f"{sum(slots[kind].values())} {kind}" for kind in ("missing", "added", "contradicted"))
    return f"slot error rate {slots['rate']:.4f} ({counts}, of {slots['slots']} slots)"


def _each(values: Mapping[str, Any]) -> list[Any]:
    return [values[name] for name in metrics.METRICS]


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


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """To 6 decimals: numbers and lists of numbers."""
    return {name: np.round(value, 6).tolist() for name, value in values.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
