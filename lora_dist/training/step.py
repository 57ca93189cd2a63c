"""One optimizer step of a training (its examples, their loss and gradient, AdamW), and the losses on the dev set.

The loss of a step is the sum over all reference tokens of its global batch, divided by their number. Neither depends on
how the batch is sharded over ranks and accumulation steps, so these change the speed but not the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lora_dist.config import TrainSettings
from lora_dist.data.collate import Batch, collate, contents_of, stack
from lora_dist.data.sampler import (
    Indices,
    checksum,
    dev_batches,
    global_batch,
    grouped_micro_batches,
    micro_batches,
    training_order,
)
from lora_dist.data.shapes import RoundedShapes, Shapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.collectives import sum_over_ranks
from lora_dist.distributed.world import World
from lora_dist.model.kernels.select import kernels_for
from lora_dist.training.strategy import TrainingStrategy


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step computed."""

    sums: Tensor
    """Sums of the smoothed and the plain cross-entropy over this rank's labels, in nats: (2,)."""
    samples: int
    """Checksum of this rank's examples, see `sampler.checksum`."""
    labels: int
    """Labels of the global batch."""
    tokens: int
    """Tokens of the global batch."""
    examples: int
    """Examples of the global batch."""


class OptimizerStep:
    """Makes the optimizer steps of the runs that train together; call it with the number of the step."""

    def __init__(
        self,
        strategy: TrainingStrategy,
        examples: TokenizedExamples,
        cfgs: Sequence[TrainSettings],
        shapes: Shapes,
        pad_id: int,
        world: World,
    ) -> None:
        """Store what all steps have in common.

        Args:
            strategy: the wrapped module and AdamW.
            examples: the training set.
            cfgs: hyperparameters of each run: (adapters,).
            shapes: chooses the shapes of the micro-batches.
            pad_id: token id of the padding.
            world: the ranks.
        """
        self._strategy, self._examples, self._world = strategy, examples, world
        self._shapes, self._pad_id = shapes, pad_id
        self._runs = [_Examples(examples, cfg, world) for cfg in cfgs]

    def __call__(self, number: int) -> list[StepResult]:
        """Make step `number` (from 0) of each run: (adapters,)."""
        world, runs = self._world, self._runs
        shares = [run.of_step(number) for run in runs]
        labels = [int(self._examples.label_counts[ids].sum()) for ids, _ in shares]
        # Dropout is seeded in each step, so that a resumed run needs no saved random state.
        self._strategy.seed_dropout([run.dropout_seed(number) for run in runs])
        sums = torch.zeros(len(runs), 2, device=world.device)
        micro_batches = list(zip(*(parts for _, parts in shares), strict=True))
        for together in micro_batches:
            sums += self._strategy.backward(
                self._collate(together),
                scale=[world.size / count for count in labels],
                last=together is micro_batches[-1],
            )
        self._strategy.step([run.learning_rate(number) for run in runs])
        return [
            StepResult(own, sum(map(checksum, parts)), count, int(self._examples.lengths[ids].sum()), len(ids))
            for own, count, (ids, parts) in zip(sums, labels, shares, strict=True)
        ]

    def _collate(self, together: Sequence[Indices]) -> Batch:
        """Collate the micro-batches of all runs, each in the shape that it has alone or in one that holds all."""
        examples, shapes = self._examples, self._shapes
        share_mrs = self._runs[0].share_mrs
        if len(together) > 1:
            shapes = shapes.for_all([contents_of(examples, part) for part in together])
        return stack([collate(examples, part, self._pad_id, shapes, share_mrs=share_mrs) for part in together])


class _Examples:
    """The order of a run's examples, and what else of a step depends on its number."""

    def __init__(self, examples: TokenizedExamples, cfg: TrainSettings, world: World) -> None:
        """Store what all steps have in common."""
        self._examples, self._cfg, self._world = examples, cfg, world
        self._total = cfg.total_steps(len(examples))
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def share_mrs(self) -> bool:
        """Whether references of one MR share it."""
        return self._cfg.refs_per_mr > 1

    def of_step(self, number: int) -> tuple[Indices, list[Indices]]:
        """Return the examples of the global batch (n,) and those of this rank's micro-batches."""
        cfg, examples, world = self._cfg, self._examples, self._world
        epoch, position = divmod(number, cfg.steps_per_epoch(len(examples)))
        ids = global_batch(self._order_of(epoch), position, cfg.global_batch_size)
        shard, by = (grouped_micro_batches, examples.mrs) if self.share_mrs else (micro_batches, examples.work)
        return ids, shard(ids, by, world.rank, world.size, cfg.accumulation_steps)

    def dropout_seed(self, number: int) -> int:
        """Return the seed of this rank's dropout in step `number`."""
        seeds = np.random.SeedSequence([self._cfg.seed, number, self._world.rank])
        return int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def learning_rate(self, number: int) -> float:
        """Return the learning rate of step `number`."""
        return self._cfg.learning_rate_at(number, self._total)

    def _order_of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            cfg = self._cfg
            self._epoch = epoch
            self._order = training_order(self._examples.mrs, cfg.seed, epoch, cfg.refs_per_mr)
        return self._order


def why_no_peak(cfg: TrainSettings, total_steps: int) -> str | None:
    """Return why the learning rate never reaches its peak in a training of `total_steps`; None if it does."""
    if cfg.warmup_steps < total_steps:
        return None
    return (
        f"the warm-up takes {cfg.warmup_steps:,} steps and the training {total_steps:,}: the learning rate never "
        f"reaches {cfg.learning_rate:g}; lower --train.warmup-steps"
    )


def dev_losses(
    strategy: TrainingStrategy,
    examples: TokenizedExamples,
    pad_id: int,
    world: World,
    before_batch: Callable[[], None],
    adapter: int = 0,
) -> tuple[float, float]:
    """Compute the mean loss and plain cross-entropy of the dev set, in nats per label. Collective: call on all ranks.

    Args:
        strategy: the wrapped module.
        examples: the dev set.
        pad_id: token id of the padding.
        world: the ranks.
        before_batch: called before each batch; it may raise to end the evaluation.
        adapter: the number of the adapter.
    """
    kernels = kernels_for(world.device)
    batches = dev_batches(examples.lengths, kernels.DEV_BATCH_SIZE, world.size)[world.rank :: world.size]
    shapes = RoundedShapes(kernels.SHAPE_STEP)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for indices in tqdm(
        batches, desc="dev", unit="batch", leave=False, disable=not world.shows_progress, mininterval=5
    ):
        world.watchdog.progress("the dev set")
        before_batch()
        sums += strategy.evaluate(collate(examples, indices, pad_id, shapes), adapter)
    loss, plain = (sum_over_ranks(world, sums) / int(examples.label_counts.sum())).tolist()
    return loss, plain
