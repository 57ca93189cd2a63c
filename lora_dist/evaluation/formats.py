"""Scores as text: the lines of a terminal, and the table of each instance's scores."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from lora_dist.data.corpora import E2E
from lora_dist.data.e2e import one_line
from lora_dist.metrics.readers import Instances
from lora_dist.metrics.suite import METRICS


def scores_table(scores: Mapping[str, Any]) -> str:
    """Format an object of scores.json for a terminal: scores with intervals, differences, slot errors, signature."""
    lines = [f"{name:<8} {scores[name]:8.4f}" for name in METRICS]
    if intervals := scores.get("bootstrap"):
        lines = [
            f"{line}  [{low:.4f}, {high:.4f}]"
            for line, (low, high) in zip(lines, _in_metric_order(intervals), strict=True)
        ]
    if against := scores.get("against"):
        rows = zip(
            METRICS,
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
    if corpus := scores["signature"].get("decode", {}).get("corpus"):
        signature.append(
            f"  test set: {corpus}" + ("" if corpus == E2E.name else ", not comparable with scores on E2E")
        )
    return "\n".join([*lines, *signature])


def _slot_line(slots: Mapping[str, Any]) -> str:
    if slots["rate"] is None:
        return f"no slot error rate: {slots['reason']}"
    counts = ", ".join(f"{sum(slots[kind].values())} {kind}" for kind in ("missing", "added", "contradicted"))
    return f"slot error rate {slots['rate']:.4f} ({counts}, of {slots['slots']} slots)"


def _in_metric_order(values: Mapping[str, Any]) -> list[Any]:
    return [values[name] for name in METRICS]


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
