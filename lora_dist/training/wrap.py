"""Build what a training computes with: the loss with the adapters of all its runs, and their AdamW."""

from collections.abc import Sequence

from transformers import GPT2LMHeadModel

from lora_dist.data.collate import padding_batch
from lora_dist.data.contents import most_tokens
from lora_dist.data.shapes import SMALLEST
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.world import World
from lora_dist.model import lora
from lora_dist.model.kernels.select import kernels_for
from lora_dist.training.captured import CapturedLoss
from lora_dist.training.checkpoint import Checkpoint
from lora_dist.training.loss import ReferenceLoss
from lora_dist.training.run import TrainedRun
from lora_dist.training.strategy import TrainingStrategy


def wrap(
    gpt2: GPT2LMHeadModel,
    runs: Sequence[TrainedRun],
    saved: Sequence[Checkpoint | None],
    examples: TokenizedExamples,
    pad_id: int,
    world: World,
) -> tuple[CapturedLoss, TrainingStrategy]:
    """Wrap loss and AdamW for the strategy, in their initial state or that of checkpoints.

    Args:
        gpt2: the model with the first run's untrained adapter; it belongs to the result afterwards.
        runs: the runs that train together.
        saved: the checkpoint of each, all after the same steps; None for each at the start: (runs,).
        examples: the training set.
        pad_id: token id of the padding.
        world: the ranks.
    """
    cfg, kernels = runs[0].settings.train, kernels_for(world.device)
    partitioned = world.zero_stage == 3
    others = []
    for run, own in zip(runs[1:], saved[1:], strict=True):
        adapter, each = run.settings.lora, run.settings.train
        state = lora.initial_state(gpt2, adapter, each.seed) if own is None else lora.from_peft(gpt2, own.adapter)
        others.append((adapter, state, each.label_smoothing))
    if saved[0] is not None:
        lora.load(gpt2, saved[0].adapter)
    loss = ReferenceLoss(
        gpt2 if partitioned else gpt2.to(world.device),
        kernels,
        cfg.label_smoothing,
        gradient_checkpointing=cfg.gradient_checkpointing,
        partitioned=partitioned,
        others=others,
        most_tokens=most_tokens(examples, cfg, world.size, kernels.SHAPE_STEP),
    )
    strategy = TrainingStrategy(
        world,
        module := CapturedLoss(loss),
        loss.adapter,
        weight_decay=[run.settings.train.weight_decay for run in runs],
        schedules=[(run.settings.train.learning_rate, run.settings.train.warmup_steps) for run in runs],
        lora_plus_ratio=cfg.lora_plus_ratio,
        micro_batch_size=cfg.micro_batch_size(world.size),
        max_grad_norm=cfg.max_grad_norm,
    )
    if found := [own for own in saved if own is not None]:
        idle = padding_batch(examples, pad_id, SMALLEST)
        strategy.load_moments([own.moments for own in found], found[0].steps, idle)
    return module, strategy
