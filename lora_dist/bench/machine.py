"""What the machine can do, and a separate process for each program that is measured."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from lora_dist.config import Precision
from lora_dist.distributed.device import compute_precision, peak_memory
from lora_dist.model.base import DTYPES
from lora_dist.model.kernels.select import kernels_for

CEILING_SECONDS = 10.0
"""Time limit of the search for the ceiling: a CPU without bf16 takes seconds to emulate one product."""


def bench_device() -> torch.device:
    """Where all programs compute: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precisions() -> tuple[Precision, ...]:
    """The precisions worth measuring here: bf16 only where it is not emulated."""
    return ("fp32", "bf16") if compute_precision(bench_device()) == "bf16" else ("fp32",)


def now() -> float:
    """The time in seconds, once the device has finished its work."""
    if bench_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Measurement:
    """One program, once."""

    seconds: float
    """Of the measured part, without loading and warm-up."""
    peak_bytes: int
    """Peak memory of its process: a GPU's tensors where it used one, else all that was resident."""
    result: Any
    """What else the program returned."""


def measure_apart(program: Callable[..., tuple[float, Any]], *arguments: Any, threads: int) -> Measurement:
    """Run `program`, which returns its seconds and a result, in a fresh process with `threads` threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, program, arguments, threads).result()


def measure_together(program: Callable[..., tuple[float, Any]], shards: Sequence[tuple[Any, ...]]) -> Measurement:
    """The same in one process per shard, all at once, each with one thread; the seconds are the slowest's."""
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


def matmul_ceiling(precision: Precision, threads: int) -> float:
    """Floating-point operations per second of a product as large as GPT-2's: the best of several.

    Args:
        precision: of the product.
        threads: of the CPU.
    """
    torch.set_num_threads(threads)
    a = torch.randn(1024, 768, dtype=DTYPES[precision], device=bench_device())
    b = torch.randn(768, 3072, dtype=DTYPES[precision], device=bench_device())
    # A GPU gets many at a time, as one ends before the next is launched.
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
