"""The contents of every micro-batch of a training, which are known before its first step.

The order of the examples is a function of the seed, so nothing has to be loaded or computed to know which micro-batches
will come.
"""

from collections.abc import Sequence

import numpy as np

from lora_dist.config import TrainSettings
from lora_dist.data.sampler import Indices, assign_ranks, epoch_order, global_batch
from lora_dist.data.shapes import RoundedShapes, Shapes, static_shapes
from lora_dist.data.tokens import TokenizedExamples

PAIRS = 2**22
"""Pairs of examples that are compared at a time, in sharding many steps over the ranks at once."""


def training_contents(
    train: TokenizedExamples, cfg: TrainSettings, processes: int, others: Sequence[TrainSettings] = ()
) -> tuple[Indices, Indices]:
    """Compute the fields of `shapes.Contents` for the distinct micro-batches of all processes of a training.

    Each row is one example: with `refs_per_mr` above 1, this is an upper bound.

    Args:
        train: the training set.
        cfg: hyperparameters.
        processes: number of processes.
        others: those of the runs that are trained together with it, which differ in their order of the examples. The
            contents are then the largest of the micro-batches that are computed together.

    Returns:
        The contents (n, 4), and how often each occurs (n,).
    """
    seeds = {each.seed: each for each in (cfg, *others)}.values()
    largest = np.maximum.reduce([_all_contents(train, each, processes) for each in seeds])
    return np.unique(largest, axis=0, return_counts=True)


def _all_contents(train: TokenizedExamples, cfg: TrainSettings, processes: int) -> Indices:
    """Compute the contents of each micro-batch of a training, in an order that does not depend on the seed: (n, 4)."""
    total, per_epoch = cfg.total_steps(len(train)), cfg.steps_per_epoch(len(train))
    found: list[Indices] = []
    for epoch in range(-(-total // per_epoch)):
        order = epoch_order(len(train), cfg.seed, epoch)
        steps, batch_size = min(per_epoch, total - epoch * per_epoch), cfg.global_batch_size
        whole = min(steps, len(train) // batch_size)
        found += _micro_batches(train, order[: whole * batch_size].reshape(whole, batch_size), cfg, processes)
        if whole < steps:  # the last one is smaller
            found += _micro_batches(train, global_batch(order, whole, batch_size)[None], cfg, processes)
    return np.concatenate(found)


def most_tokens(train: TokenizedExamples, cfg: TrainSettings, processes: int, multiple: int) -> int:
    """Compute the tokens of the largest micro-batch that any seed could give, rounded up to a multiple."""
    size = cfg.micro_batch_size(processes)
    return max(1, -(-int(np.sort(train.lengths - 1)[-size:].sum()) // multiple)) * multiple


def _micro_batches(train: TokenizedExamples, batches: Indices, cfg: TrainSettings, processes: int) -> list[Indices]:
    """Compute the contents of the micro-batches of global `batches` (steps, examples).

    Shards as `sampler.micro_batches` does, but many steps at once; so batches must divide among the ranks, unless there
    is only one.

    Returns:
        Arrays with the contents of one micro-batch per step: (steps, 4) each.
    """
    found, at_once = [], max(1, PAIRS // batches.shape[1] ** 2)
    for start in range(0, len(batches), at_once):
        some = batches[start : start + at_once]
        falling = np.take_along_axis(some, np.argsort(-train.work[some], axis=1, kind="stable"), axis=1)
        ranks = assign_ranks(train.work[falling], processes)
        for rank in range(processes):
            own = falling[ranks == rank].reshape(len(some), -1)
            for part in np.array_split(own, cfg.accumulation_steps, axis=1):
                lengths, labels = train.lengths[part] - 1, train.label_counts[part]
                rows = np.full(len(some), part.shape[1])
                found.append(np.stack([rows, lengths.sum(1), lengths.max(1, initial=0), labels.sum(1)], axis=1))
    return found


def training_shapes(
    train: TokenizedExamples,
    cfg: TrainSettings,
    processes: int,
    multiple: int,
    static: int,
    others: Sequence[TrainSettings] = (),
) -> Shapes:
    """Choose the shapes of all micro-batches of a training; all processes choose the same.

    Args:
        train: the training set.
        cfg: hyperparameters.
        processes: number of processes.
        multiple: sizes are multiples of this.
        static: most static shapes; 0 rounds up each batch by itself, as do references that share an MR.
        others: see `training_contents`.
    """
    if not static or cfg.refs_per_mr > 1:
        return RoundedShapes(multiple)
    return static_shapes(*training_contents(train, cfg, processes, others), static, multiple)
