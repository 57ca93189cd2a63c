"""One table, in Markdown, of what `launch/gpu_check.sh` measured: python -m lora_dist.bench.gpu_table FOLDER."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Rows = dict[str, dict[str, Any]]
"""The rows of one benchmark by name; see `rows.Row`."""

PEERS = "PEFT and Trainer"


def gpu_table(folder: Path) -> str:
    """Format the results in `folder`, of the parts that succeeded."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU (a dry run)"
    found = {
        path.stem: {row["name"]: row for row in json.loads(path.read_text("utf-8"))} for path in folder.glob("*.json")
    }
    steps = {name.partition("-")[2] for name in found if name.startswith(("train-", "epochs-"))}
    cases = sorted(steps, key=_small_first)
    lines = [f"On one {device}, torch {torch.__version__}:", ""]
    if (log := folder / "tests.log").is_file():
        lines += [f"Tests: {_last_line(log)}", ""]
    if cases:
        lines += [
            "| | " + " | ".join(case.replace("-", ", ") for case in cases) + " |",
            "|---" * (1 + len(cases)) + "|",
        ]
    for title, part, value in FIGURES:
        cells = [value(found.get(f"{part}-{case}", {})) for case in cases]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for name, shape in (("decode", "Small"), ("decode-medium", "Medium")):
        if name in found:
            lines += ["", f"| decoding, {shape} | value | unit | times ours |", "|---|---|---|---|"]
            decoding = [row for row in found[name].values() if row["unit"]]
            lines += [f"| {row['name']} | {row['value']} | {row['unit']} | {row['ratio']} |" for row in decoding]
    return "\n".join(lines)


def _small_first(case: str) -> tuple[bool, str]:
    return "medium" in case, case


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return re.sub(r"^=+ | =+$", "", lines[-1]) if lines else "no output"


def _value(name: str) -> Callable[[Rows], str]:
    return lambda rows: str(rows[name]["value"]) if name in rows else ""


def _ratio(name: str) -> Callable[[Rows], str]:
    return lambda rows: str(rows[name]["ratio"]) if name in rows else ""


def _best_peer(rows: Rows) -> str:
    """Compute how many times our time the fastest peer takes per step."""
    times = [row["ratio"] for name, row in rows.items() if name.startswith(PEERS) and name.endswith(": step")]
    return str(min(times)) if times else ""


FIGURES: list[tuple[str, str, Callable[[Rows], str]]] = [
    ("step, captured, bf16, ms", "train", _value("ours, bf16: step")),
    ("step, eager, bf16, ms", "train", _value("ours, eager, bf16: step")),
    ("GPU busy in a captured step, ms", "train", _value("ours, bf16: GPU busy")),
    ("launches of a captured step", "train", _value("ours, bf16: launches")),
    ("launches of an eager step", "train", _value("ours, eager, bf16: launches")),
    ("PEFT and Trainer, bf16 autocast, ms", "train", _value(f"{PEERS}, bf16 autocast: step")),
    ("PEFT and Trainer, bf16 weights, ms", "train", _value(f"{PEERS}, bf16 weights: step")),
    ("PEFT and Trainer's best, times our step", "train", _best_peer),
    ("peak memory of the steps, GiB", "train", _value("ours, bf16: peak memory")),
    ("step and adapter of 8 runs together, ms", "train", _value("ours, 8 together, bf16: step and adapter")),
    ("8 together, times PEFT's best rate", "train", _value("ours, 8 together, bf16: over PEFT's best")),
    ("peak memory of 8 together, GiB", "train", _value("ours, 8 together, bf16: peak memory")),
    ("start: loading and capturing, s", "epochs", _value("start: loading and capturing")),
    ("step of a real run with its logging, ms", "epochs", _value("step with its logging")),
    ("evaluation on the dev set, s", "epochs", _value("evaluation on the dev set")),
    ("checkpoint, ms", "epochs", _value("checkpoint")),
    ("all epochs, extrapolated, s", "epochs", _value("the whole training")),
    ("all epochs, times the steps alone", "epochs", _ratio("the whole training")),
    ("peak memory of a real run, GiB", "epochs", _value("peak memory")),
    ("peak memory, times the planned", "epochs", _ratio("peak memory")),
]
"""Title, part of `gpu_check.sh`, and how to find the figure in its rows."""


if __name__ == "__main__":
    print(gpu_table(Path(sys.argv[1])))
