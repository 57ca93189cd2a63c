"""What a training says while it runs: metrics.jsonl, the progress bar, and the optional tracker, on rank 0 alone."""

import json
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_dist.distributed.device import peak_memory
from lora_dist.distributed.world import World, on_main, sum_over_ranks
from lora_dist.files import write_jsonl
from lora_dist.run_dir import RunDir


@dataclass(frozen=True)
class Update:
    """What one update counted."""

    sums: Tensor
    """This rank's sums of the smoothed and of the plain cross-entropy, in nats: (2,)."""
    samples: int
    """See `batches.checksum`: of the examples that this rank computed."""
    labels: int
    """Labels of the global batch."""
    tokens: int
    """Tokens of the global batch."""
    examples: int
    """Examples of the global batch."""


class TrainingLog:
    """Collects sums over updates and turns them into means per token, over all ranks, when a line is due."""

    def __init__(self, run: RunDir, world: World, tracker_settings: dict[str, Any], done: int, total: int) -> None:
        """Open the log after `done` of `total` updates; lines of later updates, from before a kill, are dropped."""
        self._world = world
        self._run = run
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="train",
            unit="update",
            disable=not world.is_main,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        self.evaluated: set[int] = on_main(world, lambda: self._drop_rows_after(done))
        """Updates after which the dev losses are in the log."""
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in tracker_settings.items()}
        world.accelerator.init_trackers("lora_dist", config=plain)  # TensorBoard takes no lists and no None
        self._updates: list[Update] = []
        self._interval_start = time.perf_counter()

    def _drop_rows_after(self, done: int) -> set[int]:
        """Rewrite metrics.jsonl; the updates whose dev losses stay in it."""
        old = self._run.metrics.read_text(encoding="utf-8").splitlines() if self._run.metrics.exists() else []
        rows = [row for row in (json.loads(line) for line in old if line.endswith("}")) if row["step"] <= done]
        write_jsonl(self._run.metrics, rows)
        return {row["step"] for row in rows if "dev_loss" in row}

    @property
    def pending(self) -> bool:
        """Whether there are updates since the last line."""
        return bool(self._updates)

    def add(self, update: Update) -> None:
        """Count one update."""
        self._updates.append(update)
        self._bar.update()

    def write(self, step: int, epoch: float, learning_rate: float) -> None:
        """Log the mean loss since the last line; every rank has to call it.

        Raises:
            FloatingPointError: on every rank, if the loss is not finite.
        """
        labels, tokens, examples = (sum(getattr(u, k) for u in self._updates) for k in ("labels", "tokens", "examples"))
        loss, samples, memory = self._over_ranks()
        loss /= labels
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at update {step}: lower --train.learning-rate or set --train.max-grad-norm"
            )
        seconds = time.perf_counter() - self._interval_start
        examples_per_second = examples / seconds
        self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}", ex_per_s=f"{examples_per_second:.1f}")
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
        """Sum of the loss since the last line, checksum of its examples, and peak memory of each rank in GiB."""
        here = self._world
        memory = torch.zeros(here.size, dtype=torch.float64)
        memory[here.rank] = peak_memory(here.device) / 2**30
        loss = torch.stack([update.sums[0].double() for update in self._updates]).sum()
        samples = sum(update.samples for update in self._updates)
        parts = loss[None], torch.tensor([samples], dtype=torch.float64), memory
        summed = sum_over_ranks(here, torch.cat([part.to(here.device) for part in parts])).tolist()
        return summed[0], int(summed[1]), [round(gib, 3) for gib in summed[2:]]

    def write_dev(self, step: int, epoch: float, dev_loss: float, dev_nll: float) -> None:
        """Log the losses on the dev set, in nats a token: the trained objective, and without label smoothing."""
        if self._world.is_main:
            self._bar.write(
                f"dev loss {dev_loss:.4f}, perplexity {math.exp(dev_nll):.3f} after {step} updates", sys.stderr
            )
        self._write_row(
            {
                "step": step,
                "epoch": round(epoch, 6),
                "dev_loss": dev_loss,
                "dev_nll": dev_nll,
                "dev_perplexity": math.exp(dev_nll),
            }
        )
        self._start_interval()

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def _start_interval(self) -> None:
        """Begin a new mean; time spent on dev sets and checkpoints counts for none."""
        self._updates = []
        self._interval_start = time.perf_counter()

    def _write_row(self, row: dict[str, Any]) -> None:
        plain = {k: v for k, v in row.items() if k != "step" and not isinstance(v, list)}  # trackers plot numbers
        self._world.accelerator.log(plain, step=row["step"])
        if self._world.is_main:
            with self._run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
