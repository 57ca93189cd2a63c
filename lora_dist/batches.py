"""From text to tensors: tokens, which of them have a label, the order of the examples, each rank's share, padding.

Everything here is a pure function of the corpus, the seed and the position in the training, so every rank knows the
whole global batch (and its count of labels) without asking the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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


SHAPE_STEP = 16
"""Tokens and labels of a forward pass, and the length of the rows that attention works on, are filled up to a multiple
of this. On a CPU each shape of a product has code of its own made for it, which takes some milliseconds and 0.7 MiB
for good: a training of GPT-2 Small in bf16 held 1,416 MiB with 32, 1,522 with 16, 1,671 with 8."""

EXCHANGES = 2
"""Exchanges of examples between ranks that make their work more equal: with 8 examples on two ranks the one with more
has 0.5 % more than the mean after two, 1.4 % after none."""


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


def epoch_order(num_examples: int, seed: int, epoch: int) -> Indices:
    """The order of the examples in an epoch: a permutation that depends on seed and epoch alone, (examples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def shared_order(order: Indices, mrs: Indices, refs_per_mr: int) -> Indices:
    """`order` (examples,) changed so that up to `refs_per_mr` examples of one MR stand beside each other.

    A group stands where its first example stood, and which examples form it is as random as `order`.

    Args:
        order: a permutation.
        mrs: the MR of each example: (examples,).
        refs_per_mr: examples of a group; with 1 the order stays.
    """
    by_mr = np.argsort(mrs[order], kind="stable")  # places in `order`, those of an MR in its order
    changes = np.flatnonzero(np.diff(mrs[order][by_mr], prepend=-1))
    number_in_mr = np.arange(len(order)) - np.repeat(changes, np.diff(changes, append=len(order)))
    first_of_group = by_mr[np.arange(len(order)) - number_in_mr % refs_per_mr]
    return order[by_mr[np.lexsort((number_in_mr, first_of_group))]]


def global_batch(order: Indices, position: int, batch_size: int) -> Indices:
    """The examples of an epoch's update number `position`; the epoch's last update may have fewer: (<= batch_size,)."""
    return order[position * batch_size : (position + 1) * batch_size]


def shared_rank_share(
    batch: Indices, mrs: Indices, rank: int, world_size: int, accumulation_steps: int
) -> list[Indices]:
    """The same as `rank_share`, but examples of one MR stay together where they can."""
    by_mr = batch[np.argsort(mrs[batch], kind="stable")]
    return np.array_split(by_mr, world_size * accumulation_steps)[rank * accumulation_steps :][:accumulation_steps]


def rank_share(batch: Indices, work: Indices, rank: int, world_size: int, accumulation_steps: int) -> list[Indices]:
    """One rank's part of a global batch, as `accumulation_steps` micro-batches, of which some may be empty.

    The ranks have equal work, as far as that can be had with equal numbers of examples, and a micro-batch has rows of
    like length.

    Args:
        batch: the examples: (n,).
        work: what each example of the corpus costs, in any unit: (examples,).
        rank: whose part it is.
        world_size: ranks that share the batch.
        accumulation_steps: micro-batches of a rank.
    """
    falling = batch[np.argsort(-work[batch], kind="stable")]
    return np.array_split(falling[deal(work[falling][None], world_size)[0] == rank], accumulation_steps)


def deal(work: Indices, world_size: int) -> Indices:
    """The rank that gets each example of some global batches: (batches, n).

    The next largest example goes to the rank with least work so far (Graham 1969, "Bounds on multiprocessing timing
    anomalies"); then the ranks with most and with least exchange the pair that evens them out best.

    Args:
        work: what the examples of each batch cost, falling: (batches, n).
        world_size: ranks that share each.
    """
    count, rows = work.shape[1], np.arange(len(work))
    ranks = np.empty(work.shape, np.int64)
    loads = np.zeros((len(work), world_size))
    for first in range(0, count, world_size):  # one to each rank before any gets its next
        free = loads.copy()
        for place in range(first, min(first + world_size, count)):
            ranks[:, place] = least = free.argmin(1)
            free[rows, least] = np.inf
            loads[rows, least] += work[:, place]
    for _ in range(EXCHANGES if min(count, world_size) > 1 else 0):
        most, least = loads.argmax(1), loads.argmin(1)
        gaps = loads[rows, most] - loads[rows, least]
        gains = work[:, :, None] - work[:, None, :]
        allowed = (ranks == most[:, None])[:, :, None] & (ranks == least[:, None])[:, None, :]
        left = np.where(allowed, np.abs(gaps[:, None, None] - 2 * gains), np.inf).reshape(len(work), -1)
        best = left.argmin(1)
        (changed,) = np.nonzero(left[rows, best] < gaps)
        gives, takes = best[changed] // count, best[changed] % count
        moved = gains[changed, gives, takes]
        ranks[changed, gives], ranks[changed, takes] = least[changed], most[changed]
        loads[changed, most[changed]] -= moved
        loads[changed, least[changed]] += moved
    return ranks


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
