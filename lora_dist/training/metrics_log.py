"""Progress of a training: metrics.jsonl, the progress bar and the optional tracker, all written by rank 0."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from lora_dist.distributed.collectives import on_main, sum_over_ranks
from lora_dist.distributed.device import peak_memory
from lora_dist.distributed.world import World
from lora_dist.files import write_jsonl
from lora_dist.run_dir import RunDir
from lora_dist.training.log_rows import DEV, read_log
from lora_dist.training.step import StepResult
from lora_dist.training.tracker import start_tracker

log = logging.getLogger(__name__)


class MetricsLog:
    """A context manager that collects the results of steps and logs means per token over all ranks."""

    def __init__(
        self,
        run: RunDir,
        world: World,
        tracker_settings: dict[str, Any],
        done: int,
        total: int,
        *,
        scored: bool,
        shows_bar: bool = True,
        name: str = "",
    ) -> None:
        """Set up the log after `done` of `total` steps.

        Args:
            run: the run whose metrics.jsonl is written.
            world: the ranks.
            tracker_settings: settings that the tracker shows for the run.
            done: steps of the checkpoint that the training resumes from, 0 without one.
            total: steps of the whole training.
            scored: whether dev evaluations have scores besides losses.
            shows_bar: whether to show the progress bar, which is one for all runs that train together.
            name: what to print before the run's dev losses.
        """
        self._world, self._run = world, run
        self._tracker_settings, self._done, self._total = tracker_settings, done, total
        self._dev_key = f"{DEV}BLEU" if scored else "dev_loss"
        self.evaluated: set[int] = set()
        """Steps after which a dev evaluation has been logged."""
        self._results: list[StepResult] = []
        self._interval_start = 0.0
        self._shows_bar, self._name = shows_bar and world.shows_progress, name

    def __enter__(self) -> "MetricsLog":
        """Drop the lines of steps after `done`, and show the progress bar. Collective: call on all ranks."""
        self.evaluated = on_main(self._world, self._drop_rows_after_done)
        where = start_tracker(self._world, self._run, self._tracker_settings, resumed=self._done > 0)
        if where is not None:
            log.info(where)
        self._bar = tqdm(
            total=self._total,
            initial=self._done,
            desc="train",
            unit="step",
            disable=not self._shows_bar,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._start = time.monotonic()
        self._start_interval()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._bar.close()

    def _drop_rows_after_done(self) -> set[int]:
        """Rewrite metrics.jsonl without later steps and damaged lines; return the steps whose dev evaluation remains.

        That of the last step is dropped if it has no scores and now should: it can still be made.
        """
        old = read_log(self._run.metrics)
        last = [row for row in old if row["step"] == self._done and ("dev_loss" not in row or self._dev_key in row)]
        rows = [row for row in old if row["step"] < self._done] + last
        write_jsonl(self._run.metrics, rows)
        return {row["step"] for row in rows if "dev_loss" in row}

    @property
    def pending(self) -> bool:
        """Whether there are steps since the last line."""
        return bool(self._results)

    def add(self, result: StepResult) -> None:
        """Add the result of one step."""
        self._results.append(result)
        self._bar.update()

    def write(self, step: int, epoch: float, learning_rate: float) -> None:
        """Log the mean loss since the last line. Collective: call on all ranks.

        Args:
            step: steps made so far.
            epoch: epochs made so far.
            learning_rate: learning rate of the last step.

        Raises:
            FloatingPointError: on every rank, if the loss is not finite.
        """
        results = self._results
        labels, tokens, examples = (sum(getattr(r, k) for r in results) for k in ("labels", "tokens", "examples"))
        loss, samples, memory = self._over_ranks()
        loss /= labels
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}: lower --train.learning-rate or set --train.max-grad-norm"
            )
        seconds = time.perf_counter() - self._interval_start
        examples_per_second = examples / seconds
        self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}", ex_per_s=f"{examples_per_second:.1f}")
        left = tqdm.format_interval((time.monotonic() - self._start) * (self._total - step) / (step - self._done))
        self._world.watchdog.lines(
            f"{self._name}step {step:,} of {self._total:,}: loss {loss:.4f}, lr {learning_rate:.1e}, "
            f"{examples_per_second:.1f} examples/s, {left} left"
        )
        self._write_row(
            {
                "step": step,
                "epoch": round(epoch, 6),
                "loss": loss,
                "lr": learning_rate,
                "tokens_per_second": tokens / seconds,
                "examples_per_second": examples_per_second,
                "samples": samples,
                "peak_memory_gib": memory,
            }
        )
        self._start_interval()

    def _over_ranks(self) -> tuple[float, int, list[float]]:
        """Return loss sum and examples' checksum since the last line, and each rank's peak memory in GiB."""
        here = self._world
        memory = torch.zeros(here.size, dtype=torch.float64)
        memory[here.rank] = peak_memory(here.device) / 2**30
        loss = torch.stack([result.sums[0].double() for result in self._results]).sum()
        samples = sum(result.samples for result in self._results)
        parts = loss[None], torch.tensor([samples], dtype=torch.float64), memory
        summed = sum_over_ranks(here, torch.cat([part.to(here.device) for part in parts])).tolist()
        return summed[0], int(summed[1]), [round(gib, 3) for gib in summed[2:]]

    def write_dev(self, step: int, epoch: float, losses: tuple[float, float], scores: Mapping[str, float]) -> None:
        """Log a dev evaluation.

        Args:
            step: steps made so far.
            epoch: epochs made so far.
            losses: in nats per label, with label smoothing and without.
            scores: of the decoded dev set by metric, such as BLEU; empty if it was not decoded.
        """
        dev_loss, dev_nll = losses
        bleu = f", dev BLEU {scores['BLEU']:.4f}" if scores else ""
        perplexity = math.exp(dev_nll)
        log.info(f"{self._name}dev loss {dev_loss:.4f}, perplexity {perplexity:.3f}{bleu} after {step} steps")
        self._write_row(
            {
                "step": step,
                "epoch": round(epoch, 6),
                "dev_loss": dev_loss,
                "dev_nll": dev_nll,
                "dev_perplexity": perplexity,
                **{f"{DEV}{name}": value for name, value in scores.items()},
            }
        )
        self._start_interval()

    def _start_interval(self) -> None:
        """Start a new mean, whose time excludes the dev evaluation or checkpoint before it."""
        self._results = []
        self._interval_start = time.perf_counter()

    def _write_row(self, row: dict[str, Any]) -> None:
        plain = {k: v for k, v in row.items() if k != "step" and not isinstance(v, list)}  # trackers plot scalars
        self._world.accelerator.log(plain, step=row["step"])
        if self._world.is_main:
            with self._run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                if "dev_loss" in row:  # it is not made again once a later checkpoint is on disk
                    file.flush()
                    os.fsync(file.fileno())
