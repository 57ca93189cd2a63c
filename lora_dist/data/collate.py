"""Turn examples into a batch of tensors, and compute its size."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_dist.data.sampler import Indices
from lora_dist.data.tokens import TokenizedExamples


@dataclass(frozen=True, eq=False)
class Batch:
    """The examples of one forward pass, concatenated without their last tokens, followed by padding tokens."""

    tokens: Tensor
    """Token ids: (tokens,)."""
    positions: Tensor
    """Position of each token in its example: (tokens,)."""
    pad_index: Tensor
    """Place of each token when rows are padded to one length, an index below rows * length: (tokens,)."""
    loss_index: Tensor
    """Indices of the tokens that predict a label, padded with others at the end: (outputs,)."""
    labels: Tensor
    """Target tokens of the first `len(labels)` entries of `loss_index`: (labels,)."""
    segments: Tensor | None
    """Reference that each token of a row belongs to, from 1; 0 is the MR, which all of them attend to, and -1 padding:
    (rows, length). None if each row is one example."""
    rows: int
    """Examples, or groups of examples that share an MR."""
    length: int
    """Tokens of the longest row, rounded up."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in self.named().items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def named(self) -> dict[str, Any]:
        """Return the fields by name, which are the keyword arguments of `loss.ReferenceLoss`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch."""

    tokens: int
    """Tokens, including padding."""
    rows: int
    """Examples, or groups of examples that share an MR."""
    length: int
    """Tokens of the longest row, rounded up."""
    outputs: int
    """Tokens whose last hidden state is computed."""
    labels: int
    """Tokens to predict."""


def no_examples(pad_id: int) -> Batch:
    """Return a batch without labels, for a rank that has no examples but must take part in collectives."""
    none, zero = torch.empty(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return Batch(torch.tensor([pad_id]), zero, zero, none, none, None, rows=1, length=1)


def batch_shape(rows: int, tokens: int, longest: int, labels: int, multiple: int) -> BatchShape:
    """Compute the shape of the batch that `collate` makes of at least one row.

    Args:
        rows: examples, or groups of examples that share an MR.
        tokens: tokens of all rows, without the examples' last ones.
        longest: tokens of the longest row, counted in the same way.
        labels: tokens to predict.
        multiple: tokens, outputs and the row length are rounded up to a multiple of this.
    """
    padded = _round_up(tokens, multiple)
    # The rows together need free places for the padding tokens.
    length = max(_round_up(longest, multiple), _round_up(-(-padded // rows), multiple))
    return BatchShape(padded, rows, length, min(padded, _round_up(labels, multiple)), labels)


def collate(
    examples: TokenizedExamples, indices: Indices, pad_id: int, multiple: int, *, share_mrs: bool = False
) -> Batch:
    """Concatenate examples and pad them to a multiple; padding is not attended to and predicts no label.

    Args:
        examples: the corpus.
        indices: the examples of the batch: (n,).
        pad_id: token id of the padding.
        multiple: see `batch_shape`.
        share_mrs: combine neighbours with the same MR into one row: the MR once, then `<|ref|>` and reference of each.
            Their positions are those of separate rows.
    """
    if not len(indices):
        return no_examples(pad_id)
    mrs, prompts = examples.mrs[indices], examples.prompt_lengths[indices]
    leads = np.append(True, mrs[1:] != mrs[:-1]) if share_mrs else np.ones(len(indices), bool)
    offsets = np.where(leads, 0, prompts - 1)  # first token of each example that its row does not have yet
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
        references = np.where(predicts[: len(owner)], owner - firsts[rows][owner] + 1, 0)
        segments.view(-1)[torch.from_numpy(pad_index)] = torch.from_numpy(references)
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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
