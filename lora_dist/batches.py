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


SHAPE_STEP = 32
"""Tokens and labels of a forward pass are filled up to a multiple of this. Matrix products are prepared anew for each
shape they meet, which on a CPU takes longer than the product itself; so there have to be few shapes."""

LENGTH_STEP = 8
"""The same for the length of the rows that attention works on."""


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
    """Examples of one forward pass, end to end, each without its last token, and some tokens to fill up."""

    tokens: Tensor
    """Token ids: (tokens,)."""
    positions: Tensor
    """Which position each has in its example: (tokens,)."""
    slots: Tensor
    """Where each would stand if the examples were padded to one length: an index below rows * length, (tokens,)."""
    wanted: Tensor
    """Which of the tokens predict a label, and after them some that fill up: (wanted,)."""
    labels: Tensor
    """The tokens to predict, by the first of `wanted`: (labels,)."""
    rows: int
    """Examples."""
    length: int
    """Tokens of the longest, rounded up."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        parts = self.tokens, self.positions, self.slots, self.wanted, self.labels
        tokens, positions, slots, wanted, labels = (part.to(device, non_blocking=True) for part in parts)
        return Batch(tokens, positions, slots, wanted, labels, self.rows, self.length)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]:
        """The inputs of `loss.ReferenceLoss`, in its order."""
        return self.tokens, self.positions, self.slots, self.wanted, self.labels, self.rows, self.length


@dataclass(frozen=True)
class BatchShape:
    """How large a batch is."""

    tokens: int
    """Tokens, those that fill up among them."""
    rows: int
    """Examples."""
    length: int
    """Tokens of the longest, rounded up."""
    wanted: int
    """Tokens whose last hidden state is computed."""
    labels: int
    """Tokens to predict."""


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

    Dealt out by length, longest first and to and fro (0, 1, 1, 0, 0, 1, ...), so that the ranks have equal work and a
    micro-batch has rows of like length.
    """
    by_length = batch[np.argsort(-lengths[batch], kind="stable")]
    turn, place = np.divmod(np.arange(len(batch)), world_size)
    share = by_length[np.where(turn % 2, world_size - 1 - place, place) == rank]
    return np.array_split(share, accumulation_steps)


def checksum(ids: Indices) -> int:
    """A number that tells sets of examples `ids` (n,) apart, and whose sum over ranks is that of all their examples."""
    return int(((ids + 1) * 2654435761 % 2**32).sum())  # Knuth's multiplicative hash


def dev_batches(lengths: Indices, batch_size: int, world_size: int) -> list[Indices]:
    """All examples in batches of like length, filled up with empty batches to a multiple of the world size.

    Every rank then makes the same number of forward passes, which ZeRO-3 needs.
    """
    order = np.argsort(-lengths, kind="stable")
    found = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return found + [order[:0]] * (-len(found) % world_size)


def no_examples(pad_id: int) -> Batch:
    """One token `pad_id` without a label, for a rank with nothing to do: it still has to take part."""
    none, zero = torch.empty(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return Batch(torch.tensor([pad_id]), zero, zero, none, none, rows=1, length=1)


def batch_shape(rows: int, tokens: int, longest: int, labels: int) -> BatchShape:
    """What `collate` makes of at least one example; `tokens` and `longest` are without the examples' last tokens."""
    filled = _round_up(tokens, SHAPE_STEP)
    # Some row has to have room for the tokens that fill up.
    length = max(_round_up(longest, LENGTH_STEP), _round_up(-(-filled // rows), LENGTH_STEP))
    return BatchShape(filled, rows, length, min(filled, _round_up(labels, SHAPE_STEP)), labels)


def collate(examples: TokenizedExamples, indices: Indices, pad_id: int) -> Batch:
    """Lay some examples end to end and fill up with `pad_id`, which nothing looks at and which predicts no label."""
    if not len(indices):
        return no_examples(pad_id)
    lengths, prompts = examples.lengths[indices] - 1, examples.prompt_lengths[indices]
    rows = np.repeat(np.arange(len(indices)), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    places = examples.starts[indices][rows] + positions
    predicts = positions >= prompts[rows] - 1
    labels = int(examples.label_counts[indices].sum())
    shape = batch_shape(len(indices), len(places), int(lengths.max()), labels)
    fill, slots = shape.tokens - len(places), rows * shape.length + positions
    free = np.setdiff1d(np.arange(shape.rows * shape.length), slots, assume_unique=True)
    wanted, others = np.flatnonzero(predicts), np.flatnonzero(~predicts)
    return Batch(
        tokens=torch.from_numpy(np.append(examples.ids[places], np.full(fill, pad_id)).astype(np.int64)),
        positions=torch.from_numpy(np.append(positions, np.zeros(fill, np.int64))),
        slots=torch.from_numpy(np.append(slots, free[:fill])),
        wanted=torch.from_numpy(np.append(wanted, others[: shape.wanted - len(wanted)])),
        labels=torch.from_numpy(examples.ids[places[wanted] + 1].astype(np.int64)),
        rows=shape.rows,
        length=shape.length,
    )


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
