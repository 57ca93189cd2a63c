"""What is known of the model and the corpus before any weight is loaded.

The order of the examples is a function of the seed, so the largest micro-batch to come is known in advance.
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
"""The published training set, its and the dev set's tokens by GPT-2's tokenizer, and the most in an MR."""
E2E_LONGEST, E2E_LONG, E2E_LABELS = 121, 71, 36
"""Tokens of its longest example, and of the others and labels of each in the paper's largest batch of 8."""
E2E_LARGEST_DEV = {"rows": 16, "tokens": 1696, "longest": 133, "labels": 977}
"""The 16 longest examples of its dev set."""

PAIRS = 2**22
"""Pairs of examples of a step looked at together, to shard many steps over the ranks at once."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What matters of the corpus."""

    examples: int
    """Examples of the training set."""
    tokens: int
    """Tokens of the training and the dev set."""
    longest_prompt: int
    """Tokens of the longest meaning representation."""
    largest: BatchShape
    """The micro-batch that takes most memory."""
    largest_dev: BatchShape
    """The batch of the dev set with most labels."""
    counted: bool
    """Whether tokens were counted here, or are those of the published corpus."""


def read_model_files(settings: ModelSettings) -> tuple[Any, Any]:
    """The model's config and tokenizer; for a model of a hub that is unreachable its published shape, and None."""
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
    """The corpus, or what is published of it where it or the tokenizer is unavailable.

    Args:
        settings: of the run.
        processes: how many a global batch is sharded over.
        tokenizer: the model's, or None.
        positions: most tokens of an example.
        multiple: see `collate.batch_shape`.
        size: by which the largest micro-batch is the largest.

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
    """The largest by `size` of all micro-batches that any process will meet."""
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
    """What `batch_shape` takes for each micro-batch of global `batches` (steps, examples): (steps, 4) each.

    Shards as `sampler.micro_batches` does, but many steps at once; each rank gets as many examples as the others, or
    there is only one.
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
