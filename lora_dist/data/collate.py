"""From text to tensors: the tokens of the corpus, which of them have a label, and how some examples become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lora_dist.config import UserError
from lora_dist.data.e2e import Example
from lora_dist.data.sampler import Indices

REFERENCE_TOKEN = "<|ref|>"
"""Stands between a meaning representation and its sentence; added to the tokenizer by `model.load_tokenizer`."""


SHAPE_STEP = 16
"""Tokens and labels of a forward pass, and the length of the rows that attention works on, are filled up to a multiple
of this. On a CPU each shape of a product has code of its own made for it, which takes some milliseconds and 0.7 MiB
for good: a training of GPT-2 Small in bf16 held 1,416 MiB with 32, 1,522 with 16, 1,671 with 8."""


@dataclass(frozen=True, eq=False)
class TokenizedExamples:
    """Examples `MR <|ref|> REFERENCE<eos>` as token ids, end to end in one array."""

    ids: npt.NDArray[np.int32]
    """All tokens: (tokens,)."""
    starts: Indices
    """Where each example begins in `ids`, and the end: (examples + 1,)."""
    prompt_lengths: Indices
    """Tokens before the reference, `<|ref|>` among them: (examples,)."""
    mrs: Indices
    """A number for the meaning representation of each example: (examples,)."""

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

    @property
    def work(self) -> Indices:
        """What each example costs to train, in half tokens: (examples,).

        A label goes through the vocabulary as well, which is half as much again as a token through GPT-2 Small's layers
        (38.6 and 85 million weights); the larger the model, the less it is.
        """
        return 2 * self.lengths + self.label_counts


@dataclass(frozen=True)
class Batch:
    """Examples of one forward pass, end to end, each without its last token, and some tokens to fill up."""

    tokens: Tensor
    """Token ids: (tokens,)."""
    positions: Tensor
    """Which position each has in its example: (tokens,)."""
    slots: Tensor
    """Where each would stand if the rows were padded to one length: an index below rows * length, (tokens,)."""
    wanted: Tensor
    """Which of the tokens predict a label, and after them some that fill up: (wanted,)."""
    labels: Tensor
    """The tokens to predict, by the first of `wanted`: (labels,)."""
    sharers: Tensor | None
    """Where rows hold several references: which one each place belongs to, 0 for the MR that all of them look at,
    (rows, length). None where each row is one example."""
    rows: int
    """Examples, or groups of them that share an MR."""
    length: int
    """Tokens of the longest row, rounded up."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        named = zip((field.name for field in fields(self)), self.inputs(), strict=True)
        moved: dict[str, Any] = {n: p.to(device, non_blocking=True) for n, p in named if isinstance(p, Tensor)}
        return replace(self, **moved)

    def inputs(self) -> list[Any]:
        """The fields in their order: the inputs of `loss.ReferenceLoss`."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class BatchShape:
    """How large a batch is."""

    tokens: int
    """Tokens, those that fill up among them."""
    rows: int
    """Examples, or groups of them that share an MR."""
    length: int
    """Tokens of the longest row, rounded up."""
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
    numbers = {mr: number for number, mr in enumerate(mrs)}
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
        mrs=np.asarray([numbers[example.mr] for example in examples], dtype=np.int64),
    )


def no_examples(pad_id: int) -> Batch:
    """One token `pad_id` without a label, for a rank with nothing to do: it still has to take part."""
    none, zero = torch.empty(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return Batch(torch.tensor([pad_id]), zero, zero, none, none, None, rows=1, length=1)


def batch_shape(rows: int, tokens: int, longest: int, labels: int) -> BatchShape:
    """What `collate` makes of at least one row; `tokens` and `longest` are without the examples' last tokens."""
    filled = _round_up(tokens, SHAPE_STEP)
    # Some row has to have room for the tokens that fill up.
    length = max(_round_up(longest, SHAPE_STEP), _round_up(-(-filled // rows), SHAPE_STEP))
    return BatchShape(filled, rows, length, min(filled, _round_up(labels, SHAPE_STEP)), labels)


def collate(examples: TokenizedExamples, indices: Indices, pad_id: int, share: bool = False) -> Batch:
    """Lay some examples end to end and fill up with `pad_id`, which nothing looks at and which predicts no label.

    With `share` neighbours of one MR form a row: the MR once, and behind it `<|ref|>` and reference of each, at the
    positions that they have when they stand alone.
    """
    if not len(indices):
        return no_examples(pad_id)
    mrs, prompts = examples.mrs[indices], examples.prompt_lengths[indices]
    leads = np.append(True, mrs[1:] != mrs[:-1]) if share else np.ones(len(indices), bool)
    offsets = np.where(leads, 0, prompts - 1)  # the first of its tokens that an example brings to its row
    lengths = examples.lengths[indices] - 1 - offsets
    begins = np.cumsum(lengths) - lengths
    rows, firsts = np.cumsum(leads) - 1, np.flatnonzero(leads)
    owner = np.repeat(np.arange(len(indices)), lengths)  # the example of each token
    places = np.arange(len(owner))
    positions = offsets[owner] + places - begins[owner]
    sources = examples.starts[indices][owner] + positions
    labels = int(examples.label_counts[indices].sum())
    shape = batch_shape(len(firsts), len(places), int(np.add.reduceat(lengths, firsts).max()), labels)
    slots = rows[owner] * shape.length + places - begins[firsts][rows][owner]
    fill = shape.tokens - len(places)
    free = np.setdiff1d(np.arange(shape.rows * shape.length), slots, assume_unique=True)
    predicts = np.append(positions >= prompts[owner] - 1, np.zeros(fill, bool))
    sharers = None
    if not leads.all():
        sharers = torch.full((shape.rows, shape.length), -1)
        numbers = np.where(predicts[: len(owner)], owner - firsts[rows][owner] + 1, 0)
        sharers.view(-1)[torch.from_numpy(slots)] = torch.from_numpy(numbers)
    wanted, others = np.flatnonzero(predicts), np.flatnonzero(~predicts)
    return Batch(
        tokens=torch.from_numpy(np.append(examples.ids[sources], np.full(fill, pad_id)).astype(np.int64)),
        positions=torch.from_numpy(np.append(positions, np.zeros(fill, np.int64))),
        slots=torch.from_numpy(np.append(slots, free[:fill])),
        wanted=torch.from_numpy(np.append(wanted, others[: shape.wanted - len(wanted)])),
        labels=torch.from_numpy(examples.ids[sources[wanted] + 1].astype(np.int64)),
        sharers=sharers,
        rows=shape.rows,
        length=shape.length,
    )


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
