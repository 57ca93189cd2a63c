"""One optimizer step of a training (its examples, their loss and gradient, AdamW), and the losses on the dev set.

The loss of a step is the sum over all reference tokens of its global batch, divided by their number. Neither depends on
how the batch is sharded over ranks and accumulation steps, so these change the speed but not the result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lora_dist.config import TrainSettings
from lora_dist.data.collate import collate
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
    """Makes the optimizer steps of a training; call it with the number of the step."""

    def __init__(
        self,
        strategy: TrainingStrategy,
        examples: TokenizedExamples,
        cfg: TrainSettings,
        shapes: Shapes,
        pad_id: int,
        world: World,
    ) -> None:
        """Store what all steps have in common.

        Args:
            strategy: the wrapped module and AdamW.
            examples: the training set.
            cfg: hyperparameters.
            shapes: chooses the shapes of the micro-batches.
            pad_id: token id of the padding.
            world: the ranks.
        """
        self._strategy, self._examples, self._cfg, self._world = strategy, examples, cfg, world
        self._shapes, self._pad_id = shapes, pad_id
        self._total = cfg.total_steps(len(examples))
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, number: int) -> StepResult:
        """Make step `number` (from 0)."""
        cfg, examples, world = self._cfg, self._examples, self._world
        epoch, position = divmod(number, cfg.steps_per_epoch(len(examples)))
        ids = global_batch(self._order_of(epoch), position, cfg.global_batch_size)
        share_mrs = cfg.refs_per_mr > 1
        shard, by = (grouped_micro_batches, examples.mrs) if share_mrs else (micro_batches, examples.work)
        parts = shard(ids, by, world.rank, world.size, cfg.accumulation_steps)
        labels = int(examples.label_counts[ids].sum())
        # Dropout is seeded in each step, so that a resumed run needs no saved random state.
        seeds = np.random.SeedSequence([cfg.seed, number, world.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        sums = torch.zeros(2, device=world.device)
        for part in parts:
            batch = collate(examples, part, self._pad_id, self._shapes, share_mrs=share_mrs)
            sums += self._strategy.backward(batch, scale=world.size / labels, last=part is parts[-1])
        self._strategy.step(cfg.learning_rate_at(number, self._total))
        samples = sum(checksum(part) for part in parts)
        return StepResult(sums, samples, labels, int(examples.lengths[ids].sum()), len(ids))

    def _order_of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            cfg = self._cfg
            self._epoch = epoch
            self._order = training_order(self._examples.mrs, cfg.seed, epoch, cfg.refs_per_mr)
        return self._order


def dev_losses(
    strategy: TrainingStrategy,
    examples: TokenizedExamples,
    pad_id: int,
    world: World,
    before_batch: Callable[[], None],
) -> tuple[float, float]:
    """Compute the mean loss and plain cross-entropy of the dev set, in nats per label. Collective: call on all ranks.

    Args:
        strategy: the wrapped module.
        examples: the dev set.
        pad_id: token id of the padding.
        world: the ranks.
        before_batch: called before each batch; it may raise to end the evaluation.
    """
    kernels = kernels_for(world.device)
    batches = dev_batches(examples.lengths, kernels.DEV_BATCH_SIZE, world.size)[world.rank :: world.size]
    shapes = RoundedShapes(kernels.SHAPE_STEP)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for indices in tqdm(batches, desc="dev", unit="batch", leave=False, disable=not world.is_main, mininterval=5):
        world.watchdog.progress("the dev set")
        before_batch()
        sums += strategy.evaluate(collate(examples, indices, pad_id, shapes))
    loss, plain = (sum_over_ranks(world, sums) / int(examples.label_counts.sum())).tolist()
    return loss, plain
