"""Score files and runs; every scores.json has a signature that tells which scores are comparable."""

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
from lora_dist.metrics import bootstrap, suite
from lora_dist.metrics.mteval import Variant
from lora_dist.metrics.readers import Instances, read_pair
from lora_dist.metrics.sentences import sentence_scores
from lora_dist.metrics.slots.errors import count_slot_errors
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import exclusive

BOOTSTRAP_SEED = 0
"""Fixed, so that resamples of different systems are paired and intervals are reproducible."""
RUN_RESAMPLES = 1000
"""Bootstrap resamples for the intervals in a run's scores.json."""


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
    """Compute the object of scores.json: the five scores to 6 decimals, the requested extras, and the signature.

    Args:
        references: Human references, in any format of `metrics.readers`.
        outputs: The outputs, likewise.
        variant: Variant of BLEU and NIST.
        mrs: Add `slot_error_rate` of the outputs for these meaning representations (see `metrics.slots`).
        sentence_level: Also write the scores of each instance to this file (see `metrics.sentences`).
        resamples: Add `bootstrap`: 95 % intervals from this number of resamples (see `metrics.bootstrap`).
        against: Add `against`: the score differences to these outputs of another system, with 95 % intervals and the
            p-values of a paired test; requires `resamples`.

    Raises:
        UserError: if a file cannot be read or written, the files do not match, there are too few resamples, or Java is
            missing or fails.
    """
    _check_resampling(resamples, against)
    instances = read_pair(references, outputs)
    other = None if against is None else _read_other_system(instances, references, against)
    if mrs is not None:
        slot_errors = _slot_error_rate(mrs, instances.outputs)
        instances = instances._replace(sources=list(mrs))
    statistics = suite.compute_statistics(instances.references, instances.outputs, variant)
    scores: dict[str, Any] = _rounded(statistics.scores())
    if sentence_level is not None:
        columns = sentence_scores(instances.references, instances.outputs, statistics)
        save_text(sentence_level, sentence_tsv(instances, columns))
    if resamples is not None:
        samples = bootstrap.bootstrap_scores(statistics, resamples, BOOTSTRAP_SEED)
        intervals = _rounded(bootstrap.confidence_intervals(samples))
        scores["bootstrap"] = {"resamples": resamples, "seed": BOOTSTRAP_SEED, **intervals}
        if against is not None and other is not None:
            scores["against"] = {"outputs": _sha256(against), **_paired_test(statistics, other, samples)}
    if mrs is not None:
        scores["slot_error_rate"] = slot_errors
    files = {"references": _sha256(references), "outputs": _sha256(outputs)}
    scores["signature"] = {**suite.signature(variant), **files}
    return scores


def _check_resampling(resamples: int | None, against: Path | None) -> None:
    if resamples is None and against is not None:
        raise UserError(f"--against is {against} but --bootstrap is not set: add --bootstrap 1000")
    if resamples is not None and resamples < bootstrap.MIN_RESAMPLES:
        raise UserError(f"--bootstrap is {resamples}: must be >= {bootstrap.MIN_RESAMPLES}, such as 1000")


def _read_other_system(instances: Instances, references: Path, against: Path) -> Instances:
    """Read another system's outputs for the same instances."""
    other = read_pair(references, against)
    if other.references != instances.references:
        raise UserError(f"{against} has its outputs in another order than the outputs it is compared with: sort it")
    return other


def _slot_error_rate(mrs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """Return the rate, the number of slots, and the counts of each kind of error by attribute."""
    if len(mrs) != len(outputs):
        raise UserError(f"there are {len(mrs)} meaning representations for {len(outputs)} outputs: pass one per output")
    counts = count_slot_errors([dict(parse_mr(mr)) for mr in mrs], outputs)
    return {"rate": round(counts.rate, 6), **asdict(counts)}


def _paired_test(
    statistics: suite.CorpusStatistics, other: Instances, samples: NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """Compare a system with another one: differences of the scores, their 95 % intervals and p-values.

    Args:
        statistics: Of the first system.
        other: Outputs of the second system for the same instances.
        samples: Bootstrap scores of the first system, shape (resamples, 5).
    """
    other_statistics = suite.compute_statistics(other.references, other.outputs, statistics.variant)
    differences = np.subtract(list(statistics.scores().values()), list(other_statistics.scores().values()))
    paired = samples - bootstrap.bootstrap_scores(other_statistics, len(samples), BOOTSTRAP_SEED)
    return {
        "difference": _rounded(dict(zip(suite.METRICS, differences.tolist(), strict=True))),
        "interval": _rounded(bootstrap.confidence_intervals(paired)),
        "p": _rounded(bootstrap.p_values(differences, paired)),
    }


def score_run(run: RunDir, variant: Variant = "perl") -> dict[str, Any]:
    """Score a run's outputs and write scores.json, the scores of each sentence, and the adapter's model card.

    The slot error rate is null with the reason if the corpus has other values than E2E. The intervals are left out if
    NIST is undefined for a resample, as with a handful of very short outputs.

    Raises:
        UserError: if the run has no outputs, another process is writing to it, or Java is missing or fails. scores.json
            is unchanged then.
    """
    with exclusive(run):
        return _score_run(run, variant)


def _score_run(run: RunDir, variant: Variant) -> dict[str, Any]:
    paths = run.references_text, run.outputs_text
    try:
        scores = score_files(*paths, variant, sentence_level=run.sentence_scores, resamples=RUN_RESAMPLES)
    except bootstrap.UndefinedResample:
        scores = score_files(*paths, variant, sentence_level=run.sentence_scores)
    decoding = read_json(run.decode_signature, f"{run.root} has not been decoded")
    rows = read_jsonl(run.outputs)
    signature = scores.pop("signature")
    try:
        scores["slot_error_rate"] = _slot_error_rate([row["mr"] for row in rows], [row["text"] for row in rows])
    except UserError as error:
        scores["slot_error_rate"] = {"rate": None, "reason": str(error)}
    scores["signature"] = {**signature, "decode": decoding}
    write_json(run.scores, scores)
    if run.adapter.is_dir():
        write_card(run)
    return scores


def mteval_variant(scores: Mapping[str, Any]) -> Variant:
    """Return the variant of BLEU and NIST in an object of scores.json."""
    return "python" if scores["signature"]["BLEU"].startswith("pymteval") else "perl"


def scores_table(scores: Mapping[str, Any]) -> str:
    """Format an object of scores.json for a terminal: scores with intervals, differences, slot errors, signature."""
    lines = [f"{name:<8} {scores[name]:8.4f}" for name in suite.METRICS]
    if intervals := scores.get("bootstrap"):
        lines = [
            f"{line}  [{low:.4f}, {high:.4f}]"
            for line, (low, high) in zip(lines, _in_metric_order(intervals), strict=True)
        ]
    if against := scores.get("against"):
        rows = zip(
            suite.METRICS,
            *map(_in_metric_order, (against["difference"], against["interval"], against["p"])),
            strict=True,
        )
        lines.append("difference to the other system, 95 % interval, and p of a one-sided paired test:")
        lines += [
            f"{name:<8} {difference:+8.4f}  [{low:+.4f}, {high:+.4f}]  p {p:.4f}"
            for name, difference, (low, high), p in rows
        ]
    if slots := scores.get("slot_error_rate"):
        lines.append(_slot_line(slots))
    signature = [f"  {key}: {value}" for key, value in scores["signature"].items() if key != "decode"]
    return "\n".join([*lines, *signature])


def _slot_line(slots: Mapping[str, Any]) -> str:
    if slots["rate"] is None:
        return f"no slot error rate: {slots['reason']}"
    counts = ", ".join(f"{sum(slots[kind].values())} {kind}" for kind in ("missing", "added", "contradicted"))
    return f"slot error rate {slots['rate']:.4f} ({counts}, of {slots['slots']} slots)"


def _in_metric_order(values: Mapping[str, Any]) -> list[Any]:
    return [values[name] for name in suite.METRICS]


def sentence_tsv(instances: Instances, columns: Mapping[str, NDArray[Any]]) -> str:
    """Format the instances and their scores to 4 decimals as TSV with the official script's columns.

    Each instance is one line: a line break in a text becomes a space, and a text with a tab or a double quote is
    quoted.

    Args:
        instances: The instances.
        columns: Scores by column name, each of shape (instances,).
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, dialect="excel-tab", lineterminator="\n")
    writer.writerow(["src", "sys_out", *columns])
    for source, output, *values in zip(instances.sources, instances.outputs, *columns.values(), strict=True):
        writer.writerow([one_line(source), one_line(output), *(f"{value:.4f}" for value in values)])
    return buffer.getvalue()


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round values and lists of values to 6 decimals."""
    return {name: np.round(value, 6).tolist() for name, value in values.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
