"""Time and memory of a whole training, from the steps, checkpoints and dev evaluation of a short real one."""

import statistics
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lora_dist.bench.machine import bench_device, measure_apart, now, use_one_gpu
from lora_dist.bench.models import save_model
from lora_dist.bench.rows import Row
from lora_dist.config import Settings
from lora_dist.distributed.collectives import StopPoll
from lora_dist.distributed.device import compute_precision
from lora_dist.distributed.world import world
from lora_dist.errors import UserError
from lora_dist.planning.plan import Plan, make_plan
from lora_dist.run_dir import RunDir
from lora_dist.training.determinism import reproducible
from lora_dist.training.trainer import Trainer

INTERVALS = 3
"""Intervals between checkpoints in which steps are timed; one more comes before, as a warm-up."""


@dataclass(frozen=True)
class TrainingTimes:
    """What a short training spent its time on, in seconds."""

    start: float
    """To load model and corpus, and on a GPU to capture the steps."""
    step: float
    """Per step, its logging included."""
    checkpoint: float
    """Per checkpoint."""
    evaluation: float
    """Per evaluation on the dev set."""


def bench_epochs(settings: Settings, shape: str | None, steps: int, threads: int) -> list[Row]:
    """Make a short training in this machine's precision and extrapolate it to the whole one.

    Args:
        settings: settings of the whole training.
        shape: a key of `models.SHAPES` for random weights of that shape, or None for the model's own.
        steps: steps to time, after a warm-up of a third as many.
        threads: CPU threads.

    Returns:
        Rows. The ratio of the whole training is that to its steps alone, that of the peak memory is that to the plan's.

    Raises:
        UserError: if model or data cannot be read, or the steps are not a multiple of `INTERVALS`.
    """
    if steps < 1 or steps % INTERVALS:
        raise UserError(f"--updates is {steps}: must be a multiple of {INTERVALS}")
    use_one_gpu()
    device = bench_device()
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        folder = Path(name)
        save_model(settings.model, shape, folder / "model")
        settings = replace(settings, model=replace(settings.model, name=str(folder / "model")))
        plan = make_plan(settings, 1, device.type, compute_precision(device), None)
        measured = measure_apart(_short_training, settings, folder / "run", steps // INTERVALS, threads=threads)
    return _rows(measured.result, measured.peak_bytes, plan)


def _rows(times: TrainingTimes, peak_bytes: int, plan: Plan) -> list[Row]:
    schedule, planned = plan.schedule, plan.memory["single"].total
    steps = schedule.steps * times.step
    whole = steps + schedule.checkpoints * times.checkpoint + schedule.dev_evaluations * times.evaluation
    peak = peak_bytes / 2**30
    return [
        Row("start: loading and capturing", round(times.start, 2), "s", None),
        Row("step with its logging", round(1e3 * times.step, 3), "ms", None),
        Row("checkpoint", round(1e3 * times.checkpoint, 1), "ms", None),
        Row("evaluation on the dev set", round(times.evaluation, 2), "s", None),
        Row("the whole training", round(whole, 1), "s", round(whole / steps, 3)),
        Row("peak memory", round(peak, 3), "GiB", round(peak_bytes / planned, 3)),
    ]


class _TimedTrainer(Trainer):
    """A training that notes when its checkpoints and its last evaluation begin and end, in seconds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.saves: list[tuple[float, float]] = []
        self.evaluation = (0.0, 0.0)

    def save(self, steps: int) -> None:
        begin = now()
        super().save(steps)
        self.saves.append((begin, now()))

    def evaluate(self, steps: int, poll: StopPoll) -> None:
        if steps < self.total_steps:
            return
        begin = now()
        super().evaluate(steps, poll)
        self.evaluation = (begin, now())


def _short_training(settings: Settings, folder: Path, interval: int) -> tuple[float, TrainingTimes]:
    """Train with a checkpoint every `interval` steps; return the seconds of the timed steps, and the times."""
    total = (1 + INTERVALS) * interval
    cfg = replace(settings.train, epochs=total, max_steps=total, checkpoint_steps=interval)
    begin = now()
    with world(str(bench_device())) as here, reproducible(cfg.seed, deterministic=cfg.deterministic):
        trainer = _TimedTrainer([(replace(settings, train=cfg), RunDir(folder))], here)
        started = now()
        trainer.run()
    seconds = sum(after[0] - before[1] for before, after in pairwise(trainer.saves))
    checkpoint = statistics.median(end - start for start, end in trainer.saves)
    evaluation = trainer.evaluation[1] - trainer.evaluation[0]
    return seconds, TrainingTimes(started - begin, seconds / (INTERVALS * interval), checkpoint, evaluation)
