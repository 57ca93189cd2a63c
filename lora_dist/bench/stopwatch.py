"""Time passes over the same steps: a warm-up, timed ones, and on a GPU one under the profiler."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lora_dist.bench.machine import bench_device

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
"""Calls of CUDA's interfaces that start one kernel, or a graph of them."""


@dataclass(frozen=True)
class StepTimes:
    """What one pass over the steps takes."""

    seconds: float
    """Median of the timed passes; on a GPU by its own clock."""
    busy_seconds: float | None
    """Sum of the kernels' times; None on a CPU."""
    kernels: float | None
    """Kernels of all steps; None on a CPU."""
    launches: float | None
    """Calls that start them; None on a CPU."""
    loss: float
    """Mean loss of the last timed pass, in nats per label."""


class Stopwatch:
    """Counts the steps of a program and takes the time at the ends of passes."""

    def __init__(self, steps: int) -> None:
        """Set up for passes of `steps` steps."""
        self.steps = steps
        self._on_gpu = bench_device().type == "cuda"
        self.rounds = 3 if self._on_gpu else 1
        """Timed passes; on a CPU, where one takes much longer, the best of several processes counts instead."""
        self.total_steps = (1 + self.rounds + self._on_gpu) * steps
        """Steps that the program must make."""
        self._done = 0
        self._marks: list[Any] = []
        self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) if self._on_gpu else None

    def step_done(self) -> None:
        """Note that one more step was made."""
        self._done += 1
        if self._done % self.steps == 0:
            self._marks.append(self._mark())
        if self._profiler is not None and self._done == (1 + self.rounds) * self.steps:
            torch.cuda.synchronize()
            self._profiler.start()
        if self._profiler is not None and self._done == self.total_steps:
            torch.cuda.synchronize()
            self._profiler.stop()

    def times(self, loss: float) -> StepTimes:
        """Return the times after all steps.

        Args:
            loss: mean loss of the last timed pass.
        """
        assert self._done == self.total_steps, f"{self._done} of {self.total_steps} steps were made"
        seconds = statistics.median(self._between(a, b) for a, b in pairwise(self._marks[: 1 + self.rounds]))
        if self._profiler is None:
            return StepTimes(seconds, None, None, None, loss)
        events = self._profiler.events() or []  # type: ignore[no-untyped-call]
        # The optimizer's step is an annotation, which lasts as long as its kernels.
        on_device = (event for event in events if event.device_type == DeviceType.CUDA)
        kernels = [event for event in on_device if not event.is_user_annotation]
        launches = sum(event.name in LAUNCHES for event in events)
        return StepTimes(seconds, sum(e.self_device_time_total for e in kernels) / 1e6, len(kernels), launches, loss)

    def _mark(self) -> Any:
        """Return this moment: seconds, or on a GPU an event."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, first: Any, second: Any) -> float:
        """Compute the seconds between two moments."""
        if self._on_gpu:
            second.synchronize()
            return float(first.elapsed_time(second)) / 1e3
        return float(second - first)


def time_steps(step: Callable[[int], Tensor], steps: int) -> StepTimes:
    """Make and time the steps of a plain loop.

    Args:
        step: makes step `k` of a pass and returns its loss: ().
        steps: steps of a pass.
    """
    watch, losses = Stopwatch(steps), list[Tensor]()
    for number in range(watch.total_steps):
        loss = step(number % steps)
        watch.step_done()
        if number // steps == watch.rounds:
            losses.append(loss)
    return watch.times(float(torch.stack(losses).mean()))
