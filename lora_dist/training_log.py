"""What a training says while it runs: metrics.jsonl, the progress bar, and the optional tracker, on rank 0 alone."""

import json
import math
import sys
import time
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lora_dist.distributed import World, sum_over_ranks
from lora_dist.run_dir import RunDir, write_jsonl


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
        if world.is_main:
            old = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.exists() else []
            rows = [json.loads(line) for line in old if line.endswith("}")]
            write_jsonl(run.metrics, [row for row in rows if row["step"] <= done])
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in tracker_settings.items()}
        world.accelerator.init_trackers("lora_dist", config=plain)  # TensorBoard takes no lists and no None
        self._sums: Tensor | None = None
        self._labels = self._tokens = self._examples = 0
        self._interval_start = time.perf_counter()

    def add(self, sums: Tensor, labels: int, tokens: int, examples: int) -> None:
        """Count one update: this rank's loss sums (2,), and the global batch's labels, tokens and examples."""
        self._sums = sums if self._sums is None else self._sums + sums
        self._labels += labels
        self._tokens += tokens
        self._examples += examples
        self._bar.update()

    def write(self, step: int, epoch: float, learning_rate: float) -> None:
        """Log the mean loss since the last line; every rank has to call it.

        Raises:
            FloatingPointError: on every rank, if the loss is not finite.
        """
        if self._sums is None:
            return
        loss = (sum_over_ranks(self._world, self._sums) / self._labels)[0].item()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at update {step}: lower --train.learning-rate or set --train.max-grad-norm"
            )
        seconds = time.perf_counter() - self._interval_start
        examples_per_second = self._examples / seconds
        self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}", ex_per_s=f"{examples_per_second:.1f}")
        self._write_row(
            {
                "step": step,
                "epoch": round(epoch, 6),
                "loss": loss,
                "lr": learning_rate,
                "tokens_per_second": self._tokens / seconds,
                "examples_per_second": examples_per_second,
            }
        )
        self._start_interval()

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
        self._sums = None
        self._labels = self._tokens = self._examples = 0
        self._interval_start = time.perf_counter()

    def _write_row(self, row: dict[str, Any]) -> None:
        self._world.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])
        if self._world.is_main:
            with self._run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
