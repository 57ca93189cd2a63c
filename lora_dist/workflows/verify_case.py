"""Run one case of `verify` (a strategy, world size and accumulation), and compare its result with the reference."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from lora_dist.config import Precision, Settings
from lora_dist.config_io import from_json, to_json
from lora_dist.distributed.launcher import LOG_PREFIX, MIXED_PRECISION, Strategy, failure_reason, launch_command
from lora_dist.errors import UserError
from lora_dist.files import read_json, write_json
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir

TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest relative difference that counts as rounding."""

HANG_TIMEOUT = 300.0
"""Seconds without progress after which a process reports where it is and ends."""


@dataclass(frozen=True)
class Case:
    """One way to train."""

    strategy: Strategy | None
    """The strategy; None is one process without a launcher."""
    processes: int = 1
    accumulation_steps: int = 1
    precision: Precision = "fp32"
    """Of the frozen weights."""
    captured: bool = False
    """Whether the steps are CUDA graphs, as they are by default in a training on a GPU."""
    together: int = 1
    """Runs that train at the same time, see `workflows.sweep`; the last of them is compared."""

    def __str__(self) -> str:
        name = "single" if self.strategy is None else self.strategy.name
        several = "" if self.together == 1 else f", {self.together} together"
        details = several + (self.precision == "bf16") * ", bf16" + self.captured * ", captured"
        return f"{name}, {self.processes} x {self.accumulation_steps}{details}"

    def command(self) -> list[str]:
        """Return the first part of the command line, before a Python file or module."""
        return (
            [sys.executable] if self.strategy is None else launch_command(self.processes, self.strategy, self.precision)
        )


@dataclass(frozen=True)
class Difference:
    """How much a run differs from the reference."""

    adapter: float
    """Norm of the difference of all trainable parameters, over the reference's norm."""
    loss: float
    """Largest relative difference of a loss, on training or dev set."""
    learning_rates: int
    """Steps with a different learning rate, or missing."""
    samples: int
    """Steps with different examples, or missing."""
    sentences: int
    """Decoded sentences that differ."""

    def is_rounding(self, precision: Precision) -> bool:
        """Return whether the run is the same except for rounding in `precision`.

        In bf16 a different adapter, if only by rounding, may write a different sentence.
        """
        same = self.learning_rates == self.samples == 0 and (precision == "bf16" or self.sentences == 0)
        return same and max(self.adapter, self.loss) < TOLERANCE[precision]


def train_and_decode(case: Case, settings: Settings, run: RunDir, devices: Mapping[str, str]) -> str | None:
    """Run one case in new processes; return None if it succeeded, else the failure reason.

    Args:
        case: how to train.
        settings: settings of all cases.
        run: the run directory.
        devices: see `device.devices_for`; the same for all cases, as each kind of device rounds differently.
    """
    file = run.root.with_suffix(".json")
    graphs: Literal["auto", "off"] = "auto" if case.captured else "off"
    cfg = replace(settings.train, accumulation_steps=case.accumulation_steps, cuda_graphs=graphs)
    write_json(file, to_json(replace(settings, train=cfg)))
    # One thread and this precision also without a launcher, which would otherwise choose.
    own = {"ACCELERATE_MIXED_PRECISION": MIXED_PRECISION[case.precision], "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **devices, **own}
    command = [*case.command(), "-m", "lora_dist.workflows.verify_case", str(file), str(run.root), str(case.together)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else failure_reason(done)


def compare(run: RunDir, reference: RunDir) -> Difference:
    """Compare `run` with `reference`; both have one line of metrics.jsonl per step."""
    ours, theirs = (load_file(r.adapter / ADAPTER_WEIGHTS) for r in (run, reference))
    difference = math.hypot(*(float((ours[name].double() - theirs[name].double()).norm()) for name in theirs))
    norm = math.hypot(*(float(tensor.double().norm()) for tensor in theirs.values()))
    series = {key: _series(run, key) for key in ("lr", "samples", "loss", "dev_loss")}
    expected = {key: _series(reference, key) for key in series}

    def different(key: str) -> int:
        return sum(series[key].get(step) != value for step, value in expected[key].items())

    losses = [
        abs(series[key].get(step, math.inf) / value - 1)
        for key in ("loss", "dev_loss")
        for step, value in expected[key].items()
    ]
    texts, references = (r.outputs_text.read_text("utf-8").split("\n") for r in (run, reference))
    sentences = sum(a != b for a, b in zip(texts, references, strict=True))
    return Difference(difference / norm, max(losses), different("lr"), different("samples"), sentences)


def _series(run: RunDir, key: str) -> dict[int, float]:
    """Read one column of metrics.jsonl, by step."""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def _run_case(file: Path, root: Path, together: int) -> None:
    """Train and decode as one process of a case; see `Case.together`."""
    from lora_dist.decoding.decode import decode
    from lora_dist.distributed.world import world
    from lora_dist.training.trainer import train

    settings, run = from_json(Settings, read_json(file, "the settings of verify are missing")), RunDir(root)
    try:
        with world(hang_timeout=HANG_TIMEOUT) as here:
            train([*_others(settings, root, together - 1), (settings, run)], here)
            decode(settings, run, here)
    except UserError as error:
        sys.exit(f"{LOG_PREFIX}{error}")


def _others(settings: Settings, root: Path, number: int) -> list[tuple[Settings, RunDir]]:
    """Return further runs, which differ in their seeds."""
    return [
        (
            replace(settings, train=replace(settings.train, seed=settings.train.seed + 1 + k)),
            RunDir(Path(f"{root}-{k}")),
        )
        for k in range(number)
    ]


if __name__ == "__main__":
    _run_case(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
