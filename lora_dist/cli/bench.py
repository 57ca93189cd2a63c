"""The command `bench`: the arguments of each benchmark, and how its rows are printed."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from lora_dist.bench.rows import Row, rows_table
from lora_dist.cli.arguments import JsonCommand
from lora_dist.cli.parsing import parse, parse_with_preset
from lora_dist.config import DataSettings, DecodeSettings, ModelSettings, Precision, Settings
from lora_dist.distributed.logs import LogSettings
from lora_dist.errors import UserError
from lora_dist.files import save_text

Measured = tuple[list[Row], Path | None]
"""Rows, and the file to write them to."""


@dataclass(frozen=True, kw_only=True)
class ShapedCommand(JsonCommand):
    """Settings of the benchmarks that need a model."""

    shape: Literal["small", "medium"] | None = None
    """Use random weights of GPT-2's published shape instead of the model's; its tokenizer is still used."""


@dataclass(frozen=True, kw_only=True)
class BenchScoreCommand(JsonCommand):
    """Time to score the 630 test outputs against the 4,693 references, compared with the official script."""

    data: DataSettings = field(default_factory=DataSettings)
    official: Path | None = None
    """Checkout of github.com/tuetschek/e2e-metrics to measure too."""


@dataclass(frozen=True, kw_only=True)
class BenchDecodeCommand(ShapedCommand):
    """Seconds to decode a meaning representation, compared with transformers' generate and CTranslate2 if installed."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    count: int | None = None
    """Meaning representations to decode, spread evenly over the test set; None is all on a GPU and 32 on a CPU."""
    programs: tuple[str, ...] = ()
    """Measure only programs whose names begin so, such as "ours" "generate, batch 64"; by default all of them."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads of each program."""


@dataclass(frozen=True, kw_only=True)
class BenchEpochsCommand(ShapedCommand, Settings):
    """Time of a whole training, extrapolated from a short one, and its peak memory compared with the planned."""

    updates: int = 300
    """Optimizer steps to time, after a third as many for a warm-up; a multiple of 3."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads."""


@dataclass(frozen=True, kw_only=True)
class BenchScalingCommand(ShapedCommand, Settings):
    """Training examples per second of one process and of two, each with one thread, and their communication time."""

    precision: Precision = "bf16"
    """Precision of the frozen weights; fp32 is used if the hardware has no bf16."""
    updates: int = 40
    """Optimizer steps to time, after a warm-up."""


@dataclass(frozen=True, kw_only=True)
class BenchTrainCommand(ShapedCommand, Settings):
    """Training examples per second, compared with PEFT in transformers' Trainer and with loralib if installed."""

    updates: int | None = None
    """Optimizer steps to time, after the same steps as a warm-up; None is 3 on a CPU and 50 on a GPU."""
    programs: tuple[str, ...] = ()
    """Measure only programs whose names begin so, such as "ours, bf16" "PEFT"; by default all of them."""
    together: tuple[int, ...] = ()
    """Also measure as many runs that train together, such as 1 2 4 8; their rate is that of all of them."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads of each program."""

    def __post_init__(self) -> None:
        if any(number < 1 for number in self.together):
            raise UserError(f"--together is {' '.join(map(str, self.together))}: each must be >= 1")


def bench(argv: Sequence[str]) -> int:
    """Run one of the benchmarks and print its rows.

    Args:
        argv: name of the benchmark, then its arguments.

    Raises:
        UserError: if there is no such benchmark, or it cannot run.
    """
    name, rest = (argv[0] if argv else ""), argv[1:]
    if name in ("-h", "--help"):
        print(f"usage: lora-dist bench {{{','.join(_BENCHMARKS)}}} [settings]\n")
        print("\n".join(f"{name:<8} {command.__doc__}" for name, (command, _) in _BENCHMARKS.items()))
        return 0
    if name not in _BENCHMARKS:
        ways = ", ".join(f"lora-dist bench {name}" for name in _BENCHMARKS)
        raise UserError(f"bench cannot measure {name or 'nothing'}: give one of {ways}")
    _, measure = _BENCHMARKS[name]
    rows, file = measure(rest)
    print(rows_table(rows))
    if file is not None:
        save_text(file, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def _decode(argv: Sequence[str]) -> Measured:
    from lora_dist.bench.decode import bench_decode

    command = parse(BenchDecodeCommand, "bench decode", argv)
    limits = command.count, command.threads, command.programs
    return bench_decode(command.model, command.shape, command.data, command.decode, *limits), command.json


def _epochs(argv: Sequence[str]) -> Measured:
    command = parse_with_preset(BenchEpochsCommand, "bench epochs", BenchEpochsCommand.__doc__, argv)
    from lora_dist.bench.epochs import bench_epochs

    return bench_epochs(command.sections(), command.shape, command.updates, command.threads), command.json


def _scaling(argv: Sequence[str]) -> Measured:
    from lora_dist.bench.scaling import bench_scaling

    command = parse(BenchScalingCommand, "bench scaling", argv)
    return bench_scaling(command.sections(), command.shape, command.precision, command.updates), command.json


def _score(argv: Sequence[str]) -> Measured:
    from lora_dist.bench.score import bench_score

    command = parse(BenchScoreCommand, "bench score", argv)
    return bench_score(command.data, command.official), command.json


def _train(argv: Sequence[str]) -> Measured:
    command = parse_with_preset(BenchTrainCommand, "bench train", BenchTrainCommand.__doc__, argv)
    from lora_dist.bench.train import bench_train

    rows = bench_train(
        command.sections(), command.shape, command.updates, command.threads, command.programs, command.together
    )
    return rows, command.json


_BENCHMARKS: dict[str, tuple[type[LogSettings], Callable[[Sequence[str]], Measured]]] = {
    "decode": (BenchDecodeCommand, _decode),
    "epochs": (BenchEpochsCommand, _epochs),
    "scaling": (BenchScalingCommand, _scaling),
    "score": (BenchScoreCommand, _score),
    "train": (BenchTrainCommand, _train),
}
