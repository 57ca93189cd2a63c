"""What is known about the model and the corpus before any weight is loaded.

The order of the examples is a function of the seed, so the largest micro-batch of a training is known in advance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GPT2Config

from lora_dist.config import ModelSettings, Settings, TrainSettings
from lora_dist.data.contents import training_contents, training_shapes
from lora_dist.data.e2e import Example, load_split
from lora_dist.data.sampler import dev_batches
from lora_dist.data.shapes import BatchShape, Contents, RoundedShapes
from lora_dist.data.token_cache import tokenize_cached
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.errors import UserError
from lora_dist.model.base import PUBLISHED, load_config, load_tokenizer
from lora_dist.model.kernels.select import Kernels

E2E_EXAMPLES, E2E_DEV_EXAMPLES, E2E_TOKENS, E2E_LONGEST_PROMPT = 42_061, 4_672, 2_728_710, 51
"""As published, with GPT-2's tokenizer: examples of training and dev set, tokens of both, tokens of the longest MR."""
E2E_LONGEST, E2E_LONG, E2E_LABELS = 121, 71, 36
"""In the paper's largest batch of 8: tokens of the longest example, tokens of each other one, labels of each."""
E2E_LARGEST_DEV = Contents(rows=16, tokens=1696, longest=133, labels=977)
"""The 16 longest examples of the published dev set."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sizes of the corpus."""

    examples: int
    """Examples of the training set."""
    dev_examples: int
    """Examples of the dev set whose loss is computed."""
    tokens: int
    """Tokens of the training and the whole dev set."""
    longest_prompt: int
    """Tokens of the longest meaning representation."""
    largest: BatchShape
    """The micro-batch that needs the most memory."""
    largest_dev: BatchShape
    """The batch of the dev set with the most labels."""
    missing: tuple[str, ...]
    """What is unavailable here, and how to name it, where these are the sizes of the published corpus; else empty."""


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
    kernels: Kernels,
    size: Callable[[BatchShape], int],
) -> Corpus:
    """Measure the corpus, or return its published sizes if it or the tokenizer is unavailable.

    Args:
        settings: settings of the run.
        processes: number of processes.
        tokenizer: the model's tokenizer, or None.
        positions: most tokens of an example.
        kernels: kernels of the device, which decide on the shapes of batches.
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
        train, dev = (tokenize_cached(tokenizer, split, positions, data.linearization) for split in texts)
        return Corpus(
            examples=len(train),
            tokens=len(train.ids) + len(dev.ids),
            longest_prompt=int(max(train.prompt_lengths.max(), dev.prompt_lengths.max())),
            largest=_largest(train, cfg, processes, kernels, size),
            dev_examples=len(dev.lengths[: data.limit_dev]),
            largest_dev=_largest_dev(dev, data.limit_dev, kernels),
            missing=(),
        )
    return _published(settings, processes, tokenizer, texts, kernels)


def _published(
    settings: Settings,
    processes: int,
    tokenizer: Any,
    texts: tuple[list[Example], list[Example]] | None,
    kernels: Kernels,
) -> Corpus:
    """Return the sizes of the published corpus, or as many of its examples as `texts` has, and what is missing."""
    data, cfg = settings.data, settings.train
    missing = [] if texts is not None else ["the corpus cannot be read from the hub: name its folder, --data.dir"]
    if tokenizer is None:
        name = settings.model.name
        missing.append(f"the tokenizer of {name} cannot be read from the hub: name a folder, --model.name")
    examples, dev_examples = map(len, texts) if texts is not None else (E2E_EXAMPLES, E2E_DEV_EXAMPLES)
    examples = min(examples, data.limit_train or examples)
    rows, shapes = cfg.micro_batch_size(processes), RoundedShapes(kernels.SHAPE_STEP)
    tokens = E2E_LONGEST + (rows - 1) * E2E_LONG - rows
    few, times = E2E_LARGEST_DEV, kernels.DEV_BATCH_SIZE // E2E_LARGEST_DEV.rows
    return Corpus(
        examples=examples,
        dev_examples=min(dev_examples, data.limit_dev or dev_examples),
        tokens=examples * E2E_TOKENS // E2E_EXAMPLES,
        longest_prompt=E2E_LONGEST_PROMPT,
        largest=shapes.fit(Contents(rows, tokens, E2E_LONGEST - 1, rows * E2E_LABELS)),
        largest_dev=shapes.fit(Contents(few.rows * times, few.tokens * times, few.longest, few.labels * times)),
        missing=tuple(missing),
    )


def _largest(
    train: TokenizedExamples, cfg: TrainSettings, processes: int, kernels: Kernels, size: Callable[[BatchShape], int]
) -> BatchShape:
    """Find the largest, by `size`, of all micro-batches of all processes in a training."""
    shapes = training_shapes(train, cfg, processes, kernels.SHAPE_STEP, kernels.STATIC_SHAPES)
    contents, _ = training_contents(train, cfg, processes)
    return max({shapes.fit(Contents(*row)) for row in contents.tolist() if row[0]}, key=size)


def _largest_dev(dev: TokenizedExamples, limit: int | None, kernels: Kernels) -> BatchShape:
    """Find the batch with the most labels of those of the dev set's first `limit` examples."""
    shapes, found = RoundedShapes(kernels.SHAPE_STEP), list[BatchShape]()
    for ids in dev_batches(dev.lengths[:limit], kernels.DEV_BATCH_SIZE, 1):
        lengths, labels = dev.lengths[ids] - 1, dev.label_counts[ids]
        found.append(shapes.fit(Contents(len(ids), int(lengths.sum()), int(lengths.max()), int(labels.sum()))))
    return max(found, key=lambda shape: shape.labels)
