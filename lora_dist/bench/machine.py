"""Measure programs, each in a separate process, and the speed that the machine could reach."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lora_dist.config import Precision
from lora_dist.distributed.device import compute_precision, peak_memory
from lora_dist.errors import UserError
from lora_dist.model.base import DTYPES
from lora_dist.model.kernels.select import kernels_for

T = TypeVar("T")

CEILING_SECONDS = 10.0
"""Time limit of `matmul_ceiling`: a CPU without bf16 takes seconds to emulate one product."""


def use_one_gpu() -> None:
    """Hide all GPUs but the first from this process and those that it starts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def bench_device() -> torch.device:
    """Return the device of all programs: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precisions() -> tuple[Precision, ...]:
    """Return the precisions to measure here: bf16 only if the hardware has it."""
    return ("fp32", "bf16") if compute_precision(bench_device()) == "bf16" else ("fp32",)


def now() -> float:
    """Wait until the device has finished its work, and return the time in seconds."""
    if bench_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Measurement:
    """One measurement of a program."""

    seconds: float
    """Seconds of the measured part, without loading and warm-up."""
    peak_bytes: int
    """Peak memory of the process: tensors if it used a GPU, else all resident memory."""
    result: Any
    """The second value that the program returned."""


def measure_apart(program: Callable[..., tuple[float, Any]], *arguments: Any, threads: int) -> Measurement:
    """Run a program, which returns its seconds and a result, in a new process with `threads` threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, program, arguments, threads).result()


def measure_together(program: Callable[..., tuple[float, Any]], shards: Sequence[tuple[Any, ...]]) -> Measurement:
    """Run a program on all shards at once, each in a new process with one thread.

    Args:
        program: returns its seconds and a result.
        shards: arguments of each process.

    Returns:
        The seconds of the slowest process, the greatest peak memory, and a list of the results.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shards), mp_context=context) as pool:
        found = [future.result() for future in [pool.submit(_measure, program, shard, 1) for shard in shards]]
    return Measurement(max(m.seconds for m in found), max(m.peak_bytes for m in found), [m.result for m in found])


def _measure(program: Callable[..., tuple[float, Any]], arguments: tuple[Any, ...], threads: int) -> Measurement:
    kernels_for(bench_device()).set_up_process()  # the same for all programs
    torch.set_num_threads(threads)
    seconds, result = program(*arguments)
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")  # type: ignore[no-untyped-call]
    return Measurement(seconds, peak_memory(device), result)


def choose(programs: Mapping[str, T], chosen: Sequence[str]) -> dict[str, T]:
    """Return the programs whose names begin in one of the ways `chosen`, or all if there are none.

    Raises:
        UserError: if no name begins in one of these ways.
    """
    for beginning in chosen:
        if not any(name.startswith(beginning) for name in programs):
            raise UserError(f"--programs {beginning} matches none of: " + "; ".join(programs))
    return {name: program for name, program in programs.items() if not chosen or name.startswith(tuple(chosen))}


def matmul_ceiling(precision: Precision, threads: int) -> float:
    """Measure the floating-point operations per second of a product in GPT-2's sizes, the best of several runs.

    Args:
        precision: precision of the product.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    a = torch.randn(1024, 768, dtype=DTYPES[precision], device=bench_device())
    b = torch.randn(768, 3072, dtype=DTYPES[precision], device=bench_device())
    # Many at a time on a GPU, as a single product ends before the next one is launched.
    together = 100 if a.device.type == "cuda" else 1
    projection = kernels_for(a.device).projection(b.t(), differentiable=False)
    ways: list[Callable[[], torch.Tensor]] = [lambda: a @ b, lambda: projection.logits(a)]
    best, begin = float("inf"), now()
    for multiply in ways * 20:
        if now() - begin > CEILING_SECONDS:
            break
        start = now()
        for _ in range(together):
            multiply()
        best = min(best, (now() - start) / together)
    return 2 * 1024 * 768 * 3072 / best
