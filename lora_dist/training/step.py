"""One update of a training: its examples, their loss and gradient, the step of AdamW; and the losses on the dev set.

The loss of an update is the sum over all reference tokens of its global batch divided by their number. Both are
independent of how many ranks and accumulation steps share the batch, so these change the speed and not the result.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from lora_dist.config import TrainSettings
from lora_dist.data.collate import TokenizedExamples, collate, no_examples
from lora_dist.data.sampler import (
    DEV_BATCH_SIZE,
    Indices,
    checksum,
    dev_batches,
    epoch_order,
    global_batch,
    rank_share,
    shared_order,
    shared_rank_share,
)
from lora_dist.distributed.world import World, sum_over_ranks
from lora_dist.model import lora
from lora_dist.model.kernels.cpu import can_pack
from lora_dist.training.checkpoint import Checkpoint
from lora_dist.training.loss import ReferenceLoss
from lora_dist.training.metrics_log import Update
from lora_dist.training.strategy import Replica


def replicate(
    gpt2: GPT2LMHeadModel, recipe: TrainSettings, saved: Checkpoint | None, pad_id: int, world: World
) -> Replica:
    """Loss and AdamW, wrapped for the strategy, at the start of the training or at a checkpoint."""
    if saved is not None:
        lora.load(gpt2, saved.adapter)
    parameters = lora.parameters(gpt2)
    fused = world.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=recipe.weight_decay, fused=fused)
    # ZeRO-3 holds the weights in parts.
    packed = can_pack(world.device, gpt2.dtype) and world.strategy != "zero3"
    module = ReferenceLoss(gpt2, recipe.label_smoothing, recipe.gradient_checkpointing, packed)
    micro_batch_size = recipe.micro_batch_size(world.size)
    replica = Replica(world, module, parameters, optimizer, micro_batch_size, recipe.max_grad_norm)
    if saved is not None:
        replica.load_moments(saved.moments, saved.updates, no_examples(pad_id).to(world.device).inputs())
    return replica


def make_update(
    replica: Replica,
    examples: TokenizedExamples,
    recipe: TrainSettings,
    update: int,
    total: int,
    pad_id: int,
    world: World,
) -> Update:
    """Update number `update` (from 0) of `total`, and what it counted."""
    epoch, position = divmod(update, recipe.updates_per_epoch(len(examples)))
    ids = global_batch(training_order(examples, recipe, epoch), position, recipe.global_batch_size)
    share = recipe.refs_per_mr > 1
    if share:
        micro_batches = shared_rank_share(ids, examples.mrs, world.rank, world.size, recipe.accumulation_steps)
    else:
        micro_batches = rank_share(ids, examples.work, world.rank, world.size, recipe.accumulation_steps)
    labels = int(examples.label_counts[ids].sum())
    # Dropout is seeded anew for each update, so that a resumed run needs no saved random state.
    seeds = np.random.SeedSequence([recipe.seed, update, world.rank])
    torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    sums = torch.zeros(2, device=world.device)
    for k, part in enumerate(micro_batches):
        batch = collate(examples, part, pad_id, share).to(world.device)
        last = k == len(micro_batches) - 1
        sums += replica.train(*batch.inputs(), scale=world.size / labels, last=last)
    replica.step(recipe.learning_rate_at(update, total))
    samples = sum(checksum(part) for part in micro_batches)
    return Update(sums, samples, labels, int(examples.lengths[ids].sum()), len(ids))


@lru_cache(maxsize=1)
def training_order(examples: TokenizedExamples, recipe: TrainSettings, epoch: int) -> Indices:
    """The order of the examples in an epoch: (examples,)."""
    return shared_order(epoch_order(len(examples), recipe.seed, epoch), examples.mrs, recipe.refs_per_mr)


def dev_losses(
    replica: Replica, examples: TokenizedExamples, pad_id: int, world: World, end_if_asked: Callable[[], None]
) -> tuple[float, float]:
    """Mean loss and mean plain cross-entropy over all labels of the dev set, in nats a token."""
    batches = dev_batches(examples.lengths, DEV_BATCH_SIZE, world.size)[world.rank :: world.size]
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for share in tqdm(batches, desc="dev", unit="batch", leave=False, disable=not world.is_main, mininterval=5):
        world.watchdog.note("the dev set")
        end_if_asked()
        batch = collate(examples, share, pad_id).to(world.device)
        sums += replica.evaluate(*batch.inputs())
    loss, plain = (sum_over_ranks(world, sums) / int(examples.label_counts.sum())).tolist()
    return loss, plain
