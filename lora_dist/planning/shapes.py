"""What is known about the model and the corpus before any weight is loaded.

The order of the examples is a function of the seed, so the largest micro-batch of a training is known in advance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GPT2Config

from lora_dist.config import ModelSettings, Settings, TrainSettings
from lora_dist.data.collate import BatchShape, batch_shape
from lora_dist.data.e2e import load_split
from lora_dist.data.sampler import DEV_BATCH_SIZE, Indices, assign_ranks, dev_batches, epoch_order, global_batch
from lora_dist.data.token_cache import tokenize_cached
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.errors import UserError
from lora_dist.model.base import PUBLISHED, load_config, load_tokenizer

E2E_EXAMPLES, E2E_TOKENS, E2E_LONGEST_PROMPT = 42_061, 2_728_710, 51
"""As published, with GPT-2's tokenizer: training examples, tokens of training and dev set, tokens of the longest MR."""
E2E_LONGEST, E2E_LONG, E2E_LABELS = 121, 71, 36
"""In the paper's largest batch of 8: tokens of the longest example, tokens of each other one, labels of each."""
E2E_LARGEST_DEV = {"rows": 16, "tokens": 1696, "longest": 133, "labels": 977}
"""The 16 longest examples of the published dev set."""

PAIRS = 2**22
"""Pairs of examples that are compared at a time, in sharding many steps over the ranks at once."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sizes of the corpus."""

    examples: int
    """Examples of the training set."""
    tokens: int
    """Tokens of the training and the dev set."""
    longest_prompt: int
    """Tokens of the longest meaning representation."""
    largest: BatchShape
    """The micro-batch that needs the most memory."""
    largest_dev: BatchShape
    """The batch of the dev set with the most labels."""
    counted: bool
    """Whether these sizes were counted here instead of taken from the published corpus."""


def read_model_files(settings: ModelSettings) -> tuple[Any, Any]:
    """Read the model's config and tokenizer; if the hub is unreachable, return the published shape and None."""
    try:
        config = load_config(settings)
    except UserError:
        if settings.name not in PUBLISHED:
            raise
        dropout = 0.1 if settings.dropout is None else settings.dropout
        shape = PUBLISHED[settings.name]
        return GPT2Config(attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout, **shape), None
    try:
        return config, load_tokenizer(settings)
    except UserError:
        if Path(settings.name).exists():
            raise
        return config, None


def read_corpus(
    settings: Settings,
    processes: int,
    tokenizer: Any,
    positions: int,
    multiple: int,
    size: Callable[[BatchShape], int],
) -> Corpus:
    """Measure the corpus, or return its published sizes if it or the tokenizer is unavailable.

    Args:
        settings: settings of the run.
        processes: number of processes.
        tokenizer: the model's tokenizer, or None.
        positions: most tokens of an example.
        multiple: see `collate.batch_shape`.
        size: bytes that a micro-batch needs, which the largest one maximises.

    Raises:
        UserError: if --data.dir is given and cannot be read, or an example is longer than the model's positions.
    """
    data, cfg = settings.data, settings.train
    try:
        texts = load_split(data, "train"), load_split(data, "dev")
    except UserError:
        if data.dir is not None:
            raise
        texts = None
    if texts is not None and tokenizer is not None:
        train, dev = (tokenize_cached(tokenizer, split, positions) for split in texts)
        return Corpus(
            examples=len(train),
            tokens=len(train.ids) + len(dev.ids),
            longest_prompt=int(max(train.prompt_lengths.max(), dev.prompt_lengths.max())),
            largest=_largest(train, cfg, processes, multiple, size),
            largest_dev=max(_dev_shapes(dev, multiple), key=lambda shape: shape.labels),
            counted=True,
        )
    examples = len(texts[0]) if texts is not None else min(E2E_EXAMPLES, data.limit_train or E2E_EXAMPLES)
    rows = cfg.micro_batch_size(processes)
    tokens = E2E_LONGEST + (rows - 1) * E2E_LONG - rows
    largest = batch_shape(rows, tokens, E2E_LONGEST - 1, rows * E2E_LABELS, multiple)
    return Corpus(
        examples=examples,
        tokens=examples * E2E_TOKENS // E2E_EXAMPLES,
        longest_prompt=E2E_LONGEST_PROMPT,
        largest=largest,
        largest_dev=batch_shape(**E2E_LARGEST_DEV, multiple=multiple),
        counted=False,
    )


def _dev_shapes(dev: TokenizedExamples, multiple: int) -> Iterator[BatchShape]:
    for ids in dev_batches(dev.lengths, DEV_BATCH_SIZE, 1):
        lengths, labels = dev.lengths[ids] - 1, dev.label_counts[ids]
        yield batch_shape(len(ids), int(lengths.sum()), int(lengths.max()), int(labels.sum()), multiple)


def _largest(
    train: TokenizedExamples, cfg: TrainSettings, processes: int, multiple: int, size: Callable[[BatchShape], int]
) -> BatchShape:
    """Find the largest, by `size`, of all micro-batches of all processes in a training."""
    total, per_epoch = cfg.total_steps(len(train)), cfg.steps_per_epoch(len(train))
    found: list[Indices] = []
    for epoch in range(-(-total // per_epoch)):
        order = epoch_order(len(train), cfg.seed, epoch)
        steps, batch_size = min(per_epoch, total - epoch * per_epoch), cfg.global_batch_size
        whole = min(steps, len(train) // batch_size)
        found += _micro_batches(train, order[: whole * batch_size].reshape(whole, batch_size), cfg, processes)
        if whole < steps:  # the last one is smaller
            found += _micro_batches(train, global_batch(order, whole, batch_size)[None], cfg, processes)
    distinct = np.unique(np.concatenate(found), axis=0).tolist()
    shapes = {
        batch_shape(rows, tokens, longest, labels, multiple) for rows, tokens, longest, labels in distinct if rows
    }
    return max(shapes, key=size)


def _micro_batches(train: TokenizedExamples, batches: Indices, cfg: TrainSettings, processes: int) -> list[Indices]:
    """Compute the arguments of `batch_shape` for the micro-batches of global `batches` (steps, examples).

    Shards as `sampler.micro_batches` does, but many steps at once; so batches must divide among the ranks, unless there
    is only one.

    Returns:
        Arrays with rows, tokens, longest and labels of one micro-batch per step: (steps, 4) each.
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
