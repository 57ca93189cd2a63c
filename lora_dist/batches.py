"""From text to tensors: tokens, which of them have a label, the order of the examples, each rank's share, padding.

Everything here is a pure function of the corpus, the seed and the position in the training, so every rank knows the
whole global batch (and its count of labels) without asking the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lora_dist.config import UserError
from lora_dist.e2e import Example

Indices = npt.NDArray[np.int64]

REFERENCE_TOKEN = "<|ref|>"
"""Stands between a meaning representation and its sentence; added to the tokenizer by `model.load_tokenizer`."""


@dataclass(frozen=True)
class TokenizedExamples:
    """Examples `MR <|ref|> REFERENCE<eos>` as token ids, end to end in one array."""

    ids: npt.NDArray[np.int32]
    """All tokens: (tokens,)."""
    starts: Indices
    """Where each example begins in `ids`, and the end: (examples + 1,)."""
    prompt_lengths: Indices
    """Tokens before the reference, `<|ref|>` among them: (examples,)."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> Indices:
        """Tokens of each example: (examples,)."""
        return np.diff(self.starts)

    @property
    def label_counts(self) -> Indices:
        """Tokens of each example that the model learns to predict, `<eos>` among them: (examples,)."""
        return self.lengths - self.prompt_lengths


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass. Padding stands on the right, where a causal model never looks back at it."""

    input_ids: Tensor
    """Tokens without each row's last: (rows, length)."""
    positions: Tensor
    """Which flattened (rows * length) positions predict a label: (labels,)."""
    labels: Tensor
    """The token that follows each of `positions`: (labels,)."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs of `loss.ReferenceLoss`, in its order."""
        return self.input_ids, self.positions, self.labels


def encode_prompts(tokenizer: Any, mrs: Sequence[str]) -> list[list[int]]:
    """Token ids of `MR <|ref|>`: what training puts before a reference, and decoding starts from."""
    if not mrs:
        return []
    encoded: list[list[int]] = tokenizer([f"{mr} {REFERENCE_TOKEN}" for mr in mrs], add_special_tokens=False).input_ids
    return encoded


def tokenize(tokenizer: Any, examples: Sequence[Example], max_length: int) -> TokenizedExamples:
    """Tokenise `MR <|ref|> REFERENCE<eos>`.

    Prompt and reference are encoded apart; as the reference token is never split or merged, that gives the tokens of
    the whole text.

    Raises:
        UserError: if an example is longer than the `max_length` positions of the model.
    """
    mrs = list(dict.fromkeys(example.mr for example in examples))
    prompts = dict(zip(mrs, encode_prompts(tokenizer, mrs), strict=True))
    references = tokenizer([f" {e.reference.strip()}" for e in examples], add_special_tokens=False).input_ids
    rows = [
        [*prompts[example.mr], *reference, tokenizer.eos_token_id]
        for example, reference in zip(examples, references, strict=True)
    ]
    for row, example in zip(rows, examples, strict=True):
        if len(row) > max_length:
            raise UserError(
                f"an example has {len(row)} tokens, the model takes {max_length}: shorten {example.mr[:60]}..."
            )
    return TokenizedExamples(
        ids=np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]),
        starts=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
        prompt_lengths=np.asarray([len(prompts[example.mr]) for example in examples], dtype=np.int64),
    )


def epoch_order(num_examples: int, seed: int, epoch: int) -> Indices:
    """The order of the examples in an epoch: a permutation that depends on seed and epoch alone, (examples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def global_batch(order: Indices, position: int, batch_size: int) -> Indices:
    """The examples of an epoch's update number `position`; the epoch's last update may have fewer: (<= batch_size,)."""
    return order[position * batch_size : (position + 1) * batch_size]


def rank_share(batch: Indices, lengths: Indices, rank: int, world_size: int, accumulation_steps: int) -> list[Indices]:
    """One rank's part of a global batch, as `accumulation_steps` micro-batches, of which some may be empty.

    Dealt out by length, longest first, so that the ranks have equal work and a micro-batch has rows of like length.
    """
    by_length = batch[np.argsort(-lengths[batch], kind="stable")]
    share = by_length[rank::world_size]
    return np.array_split(share, accumulation_steps)


def dev_batches(lengths: Indices, batch_size: int, world_size: int) -> list[Indices]:
    """All examples in batches of like length, filled up with empty batches to a multiple of the world size.

    Every rank then makes the same number of forward passes, which ZeRO-3 needs.
    """
    order = np.argsort(-lengths, kind="stable")
    found = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return found + [order[:0]] * (-len(found) % world_size)


def collate(examples: TokenizedExamples, indices: Indices, pad_id: int) -> Batch:
    """Right-pad some examples to a batch.

    Labels are found by length, never by token id, so `pad_id` may be the end-of-text token that the model has to
    learn. No examples give one row of padding without labels: a rank with nothing to do still takes part.
    """
    rows = [examples.ids[examples.starts[i] : examples.starts[i + 1]] for i in indices]
    width = max((len(row) - 1 for row in rows), default=1)
    input_ids = np.full((max(1, len(rows)), width), pad_id, dtype=np.int64)
    positions, labels = [], []
    for k, (row, index) in enumerate(zip(rows, indices, strict=True)):
        prompt = examples.prompt_lengths[index]
        input_ids[k, : len(row) - 1] = row[:-1]
        positions.append(k * width + np.arange(prompt - 1, len(row) - 1))
        labels.append(row[prompt:].astype(np.int64))
    empty = np.empty(0, dtype=np.int64)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(np.concatenate([empty, *positions])),
        labels=torch.from_numpy(np.concatenate([empty, *labels])),
    )
