"""What the machine can do, and a process of its own for each program that is measured."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from lora_dist.config import Precision
from lora_dist.distributed.device import compute_precision, keep_freed_memory, peak_memory
from lora_dist.model.base import DTYPES
from lora_dist.model.kernels.cpu import can_pack, pack, product

CEILING_SECONDS = 10.0
"""How long to look for the ceiling at most: a CPU without bf16 takes seconds to emulate one product."""


def bench_device() -> torch.device:
    """Where all programs compute: a GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precisions() -> tuple[Precision, ...]:
    """Those that are worth measuring here: bf16 only where it is not emulated."""
    return ("fp32", "bf16") if compute_precision(bench_device()) == "bf16" else ("fp32",)


def now() -> float:
    """Seconds, once all that was begun is done."""
    if bench_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Measurement:
    """One program, once."""

    seconds: float
    """Of the measured part, without loading and warming up."""
    peak_bytes: int
    """Most memory its process held: a GPU's where it used one, or else all that was resident."""
    result: Any
    """What the program returned beside its time."""


def measure_apart(program: Callable[..., tuple[float, Any]], *arguments: Any, threads: int) -> Measurement:
    """Run `program`, which returns its seconds and a result, in a fresh process with so many threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, program, arguments, threads).result()


def measure_together(program: Callable[..., tuple[float, Any]], shares: Sequence[tuple[Any, ...]]) -> Measurement:
    """The same in one process a share, all at once, each with one thread; the seconds are the slowest's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), mp_context=context) as pool:
        found = [future.result() for future in [pool.submit(_measure, program, share, 1) for share in shares]]
    return Measurement(max(m.seconds for m in found), max(m.peak_bytes for m in found), [m.result for m in found])


def _measure(program: Callable[..., tuple[float, Any]], arguments: tuple[Any, ...], threads: int) -> Measurement:
    keep_freed_memory()  # the same for all programs
    torch.set_num_threads(threads)
    seconds, result = program(*arguments)
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")  # type: ignore[no-untyped-call]
    return Measurement(seconds, peak_memory(device), result)


def matmul_ceiling(precision: Precision, threads: int) -> float:
    """Multiplications and additions a second of a product as large as GPT-2's: the best of some.

    Args:
        precision: of the product.
        threads: of the CPU.
    """
    torch.set_num_threads(threads)
    a = torch.randn(1024, 768, dtype=DTYPES[precision], device=bench_device())
    b = torch.randn(768, 3072, dtype=DTYPES[precision], device=bench_device())
    # A GPU is asked for many at a time, as one is over before the next is asked for.
    together = 100 if a.device.type == "cuda" else 1
    ways: list[Callable[[], torch.Tensor]] = [lambda: a @ b]
    if can_pack(a.device, a.dtype):
        packed = pack(b.t())
        ways.append(lambda: product(a, packed))
    best, begin = float("inf"), now()
    for multiply in ways * 20:
        if now() - begin > CEILING_SECONDS:
            break
        start = now()
        for _ in range(together):
            multiply()
        best = min(best, (now() - start) / together)
    return 2 * 1024 * 768 * 3072 / best
