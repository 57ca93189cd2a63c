"""Training speed of two processes compared with one, each with one thread, and their time in communication."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lora_dist.bench.models import save_model
from lora_dist.bench.rows import Row
from lora_dist.config import Precision, Settings
from lora_dist.config_io import from_json, to_json
from lora_dist.distributed.launcher import MIXED_PRECISION, failure_reason, launch_command
from lora_dist.errors import UserError
from lora_dist.files import read_json, write_json
from lora_dist.run_dir import RunDir

ROUNDS = 2
WARM_UP = 100
"""Steps before those that are timed: until then, each process compiles kernels for new shapes of products."""
PROFILED = 5
"""Steps after those that are timed, in which the profiler measures the time in collectives; it slows them down."""


def bench_scaling(settings: Settings, shape: str | None, precision: Precision, steps: int) -> list[Row]:
    """Measure training with one process and with two, which take turns; return the best of `ROUNDS` rounds.

    Args:
        settings: settings of the training; the global batch is sharded over the processes.
        shape: a key of `models.SHAPES` for random weights of that shape, or None for the model's own.
        precision: precision of the frozen weights.
        steps: steps to time.

    Raises:
        UserError: if model or data cannot be read, or a program fails.
    """
    for processes in (1, 2):
        settings.train.micro_batch_size(processes)
    single = [sys.executable, "-m", "lora_dist.bench.scaling"]
    programs = {1: single, 2: [*launch_command(2, precision=precision), *single[1:]]}
    best: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        folder = Path(name)
        save_model(settings.model, shape, folder / "model")
        own = replace(settings, model=replace(settings.model, name=str(folder / "model")))
        write_json(folder / "arguments.json", {"settings": to_json(own), "warm_up": WARM_UP, "steps": steps})
        turns = [(processes, command) for _ in range(ROUNDS) for processes, command in programs.items()]
        for processes, command in tqdm(turns, desc="bench scaling", unit="program", disable=None):
            result = _run(command, folder, precision)
            if processes not in best or result["seconds"] < best[processes]["seconds"]:
                best[processes] = result
    one, two = best[1]["seconds"], best[2]["seconds"]
    batch = settings.train.global_batch_size
    parts = {"": two, ": communication": best[2]["communication"], ": waiting for the slower one": best[2]["waiting"]}
    return [
        Row(f"one process, one thread, {precision}", round(batch / one, 3), "examples/s", 1.0),
        Row(f"two processes, one thread each, {precision}", round(batch / two, 3), "examples/s", round(one / two, 3)),
        *(Row(f"a step of the two{n}", round(1e3 * s, 2), "ms", round(s / two, 4)) for n, s in parts.items()),
    ]


def _run(command: Sequence[str], folder: Path, precision: Precision) -> dict[str, Any]:
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": MIXED_PRECISION[precision], "CUDA_VISIBLE_DEVICES": ""}
    whole = [*command, str(folder / "arguments.json"), str(folder / "result.json")]
    done = subprocess.run(whole, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"bench scaling: a program failed: {failure_reason(done)}")
    return read_json(folder / "result.json", "bench scaling: a program wrote no result")


def _measure(arguments: dict[str, Any], result: Path) -> None:
    """Measure, in each process of a program, the seconds per step and those spent in communication and waiting.

    Args:
        arguments: `settings`, `warm_up` and `steps`.
        result: JSON file that rank 0 writes.
    """
    from lora_dist.distributed.collectives import barrier, gather_objects
    from lora_dist.distributed.world import world
    from lora_dist.training.determinism import reproducible
    from lora_dist.training.trainer import Trainer

    settings: Settings = from_json(Settings, arguments["settings"])
    warm_up, steps = int(arguments["warm_up"]), int(arguments["steps"])
    cfg = settings.train
    with world() as here, reproducible(cfg.seed, deterministic=cfg.deterministic):
        torch.set_num_threads(1)
        trainer = Trainer([(settings, RunDir(result.with_suffix("")))], here)
        for number in range(warm_up):
            trainer.step(number)
        barrier(here)
        start = time.perf_counter()
        for number in range(warm_up, warm_up + steps):
            trainer.step(number)
        barrier(here)
        seconds = (time.perf_counter() - start) / steps
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for number in range(warm_up + steps, warm_up + steps + PROFILED):
                trainer.step(number)
        spent = sum(event.cpu_time_total for event in profile.key_averages() if event.key.startswith("gloo:"))
        each = gather_objects(here, [spent / 1e6 / PROFILED])
        if here.is_main:
            # The last rank to reach a collective does not wait, so its time there is that of the communication.
            communication = min(each)
            waiting = statistics.mean(each) - communication
            write_json(result, {"seconds": seconds, "communication": communication, "waiting": waiting})


if __name__ == "__main__":
    _measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
