"""How some examples become a batch of tensors, and how large it is."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_dist.data.sampler import Indices
from lora_dist.data.tokens import TokenizedExamples


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one forward pass, end to end, each without its last token, and some tokens of padding."""

    tokens: Tensor
    """Token ids: (tokens,)."""
    positions: Tensor
    """Position of each token in its example: (tokens,)."""
    pad_index: Tensor
    """Where each token goes when rows are padded to one length: an index below rows * length, (tokens,)."""
    loss_index: Tensor
    """Indices of the tokens that predict a label, and after them some of padding: (outputs,)."""
    labels: Tensor
    """The tokens to predict by the first of `loss_index`: (labels,)."""
    segments: Tensor | None
    """Where rows hold several references: the one that each token belongs to, 0 for the MR that all of them attend to,
    (rows, length). None where each row is one example."""
    rows: int
    """Examples, or groups of them that share an MR."""
    length: int
    """Tokens of the longest row, rounded up."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in self.named().items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def named(self) -> dict[str, Any]:
        """The fields by name: the keyword arguments of `loss.ReferenceLoss`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class BatchShape:
    """How large a batch is."""

    tokens: int
    """Tokens, padding included."""
    rows: int
    """Examples, or groups of them that share an MR."""
    length: int
    """Tokens of the longest row, rounded up."""
    outputs: int
    """Tokens whose last hidden state is computed."""
    labels: int
    """Tokens to predict."""


def no_examples(pad_id: int) -> Batch:
    """One token `pad_id` without a label, for a rank with nothing to do: it still has to take part."""
    none, zero = torch.empty(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return Batch(torch.tensor([pad_id]), zero, zero, none, none, None, rows=1, length=1)


def batch_shape(rows: int, tokens: int, longest: int, labels: int, multiple: int) -> BatchShape:
    """What `collate` makes of at least one row.

    Args:
        rows: examples, or groups of them that share an MR.
        tokens: in all rows, without the examples' last tokens.
        longest: tokens of the longest row, likewise.
        labels: tokens to predict.
        multiple: what tokens, outputs and the row length are rounded up to.
    """
    padded = _round_up(tokens, multiple)
    # Some row has to have room for the padding.
    length = max(_round_up(longest, multiple), _round_up(-(-padded // rows), multiple))
    return BatchShape(padded, rows, length, min(padded, _round_up(labels, multiple)), labels)


def collate(
    examples: TokenizedExamples, indices: Indices, pad_id: int, multiple: int, *, share_mrs: bool = False
) -> Batch:
    """Lay some examples end to end and pad with `pad_id`, which nothing attends to and which predicts no label.

    Args:
        examples: the corpus.
        indices: the examples of the batch: (n,).
        pad_id: token id of the padding.
        multiple: see `batch_shape`.
        share_mrs: make neighbours of one MR a row: the MR once, and behind it `<|ref|>` and reference of each, at the
            positions that they have when they are computed separately.
    """
    if not len(indices):
        return no_examples(pad_id)
    mrs, prompts = examples.mrs[indices], examples.prompt_lengths[indices]
    leads = np.append(True, mrs[1:] != mrs[:-1]) if share_mrs else np.ones(len(indices), bool)
    offsets = np.where(leads, 0, prompts - 1)  # the first of its tokens that an example brings to its row
    lengths = examples.lengths[indices] - 1 - offsets
    begins = np.cumsum(lengths) - lengths
    rows, firsts = np.cumsum(leads) - 1, np.flatnonzero(leads)
    owner = np.repeat(np.arange(len(indices)), lengths)  # the example of each token
    places = np.arange(len(owner))
    positions = offsets[owner] + places - begins[owner]
    sources = examples.starts[indices][owner] + positions
    labels = int(examples.label_counts[indices].sum())
    shape = batch_shape(len(firsts), len(places), int(np.add.reduceat(lengths, firsts).max()), labels, multiple)
    pad_index = rows[owner] * shape.length + places - begins[firsts][rows][owner]
    padding = shape.tokens - len(places)
    free = np.setdiff1d(np.arange(shape.rows * shape.length), pad_index, assume_unique=True)
    predicts = np.append(positions >= prompts[owner] - 1, np.zeros(padding, bool))
    segments = None
    if not leads.all():
        segments = torch.full((shape.rows, shape.length), -1)
        numbers = np.where(predicts[: len(owner)], owner - firsts[rows][owner] + 1, 0)
        segments.view(-1)[torch.from_numpy(pad_index)] = torch.from_numpy(numbers)
    loss_index, others = np.flatnonzero(predicts), np.flatnonzero(~predicts)
    return Batch(
        tokens=torch.from_numpy(np.append(examples.ids[sources], np.full(padding, pad_id)).astype(np.int64)),
        positions=torch.from_numpy(np.append(positions, np.zeros(padding, np.int64))),
        pad_index=torch.from_numpy(np.append(pad_index, free[:padding])),
        loss_index=torch.from_numpy(np.append(loss_index, others[: shape.outputs - len(loss_index)])),
        labels=torch.from_numpy(examples.ids[sources[loss_index] + 1].astype(np.int64)),
        segments=segments,
        rows=shape.rows,
        length=shape.length,
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
