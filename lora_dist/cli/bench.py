"""The command `bench`: what each job takes, and how its rows are printed."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from lora_dist.bench.rows import Row, table
from lora_dist.cli.parsing import parse, parse_with_preset
from lora_dist.config import DataSettings, DecodeSettings, ModelSettings, Precision, Settings
from lora_dist.distributed.logs import LogSettings
from lora_dist.errors import UserError
from lora_dist.files import save_text

Measured = tuple[list[Row], Path | None]
"""Rows, and the file to write them to."""


@dataclass(frozen=True, kw_only=True)
class ScoreJob(LogSettings):
    """Time to score the 630 test outputs against the 4,693 references, next to the official script's."""

    data: DataSettings = field(default_factory=DataSettings)
    official: Path | None = None
    """Checkout of github.com/tuetschek/e2e-metrics, to be measured in the same run."""
    json: Path | None = None
    """Also write the rows (name, value, unit, ratio) to this file."""


@dataclass(frozen=True, kw_only=True)
class DecodeJob(LogSettings):
    """Seconds to decode a meaning representation, next to transformers' generate and CTranslate2 where installed."""

    model: ModelSettings = field(default_factory=ModelSettings)
    shape: Literal["small", "medium"] | None = None
    """Random weights of GPT-2's published shape instead of the model's, whose tokenizer is still used."""
    data: DataSettings = field(default_factory=DataSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    count: int = 32
    """Meaning representations to decode, spread evenly over the test set."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads of each program."""
    json: Path | None = None
    """Also write the rows (name, value, unit, ratio) to this file."""


@dataclass(frozen=True, kw_only=True)
class ScalingJob(LogSettings, Settings):
    """Examples per second of one process and of two, each with one thread, and their time in communication."""

    shape: Literal["small", "medium"] | None = None
    """Random weights of GPT-2's published shape instead of the model's, whose tokenizer is still used."""
    precision: Precision = "bf16"
    """Number format of the frozen weights; fp32 where the hardware has no bf16."""
    updates: int = 40
    """Steps that are timed, after a warm-up."""
    json: Path | None = None
    """Also write the rows (name, value, unit, ratio) to this file."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(LogSettings, Settings):
    """Examples per second of training, next to the seed paper's, PEFT with the Trainer and loralib where installed."""

    shape: Literal["small", "medium"] | None = None
    """Random weights of GPT-2's published shape instead of the model's, whose tokenizer is still used."""
    updates: int = 3
    """Steps that are timed, after the same ones as a warm-up."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads of each program."""
    json: Path | None = None
    """Also write the rows (name, value, unit, ratio) to this file."""


def bench(argv: Sequence[str]) -> int:
    """Measure our time next to others' for the same job: bench {decode,scaling,score,train}."""
    job, rest = (argv[0] if argv else ""), argv[1:]
    if job in ("-h", "--help"):
        jobs = {"decode": DecodeJob, "scaling": ScalingJob, "score": ScoreJob, "train": TrainJob}
        print("usage: lora-dist bench {decode,scaling,score,train} [settings]\n")
        print("\n".join(f"{name:<8} {kind.__doc__}" for name, kind in jobs.items()))
        return 0
    if job not in _JOBS:
        ways = ", ".join(f"lora-dist bench {name}" for name in _JOBS)
        raise UserError(f"bench cannot measure {job or 'nothing'}: give one of {ways}")
    rows, file = _JOBS[job](rest)
    print(table(rows))
    if file is not None:
        save_text(file, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def _decode(argv: Sequence[str]) -> Measured:
    from lora_dist.bench.decode import bench_decode

    job = parse(DecodeJob, "bench decode", argv)
    return bench_decode(job.model, job.shape, job.data, job.decode, job.count, job.threads), job.json


def _scaling(argv: Sequence[str]) -> Measured:
    from lora_dist.bench.scaling import bench_scaling

    job = parse(ScalingJob, "bench scaling", argv)
    return bench_scaling(job.sections(), job.shape, job.precision, job.updates), job.json


def _score(argv: Sequence[str]) -> Measured:
    from lora_dist.bench.score import bench_score

    job = parse(ScoreJob, "bench score", argv)
    return bench_score(job.data, job.official), job.json


def _train(argv: Sequence[str]) -> Measured:
    job = parse_with_preset(TrainJob, "bench train", TrainJob.__doc__, argv)
    from lora_dist.bench.train import bench_train

    return bench_train(job.sections(), job.shape, job.updates, job.threads), job.json


_JOBS: dict[str, Callable[[Sequence[str]], Measured]] = {
    "decode": _decode,
    "scaling": _scaling,
    "score": _score,
    "train": _train,
}
