"""Turn examples into a batch of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lora_dist.data.sampler import Indices
from lora_dist.data.shapes import BatchShape, Contents, Shapes, StaticShapes
from lora_dist.data.tokens import TokenizedExamples

IGNORE = -1
"""Label of a slot without one."""

INDICES = ("tokens", "positions", "pad_index", "pad_inverse", "loss_index", "loss_inverse", "labels")
"""The fields of a batch that every batch has, all int64."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The examples of one forward pass, concatenated without their last tokens, followed by padding tokens."""

    shape: BatchShape
    tokens: Tensor
    """Token ids: (tokens,)."""
    positions: Tensor
    """Position of each token in its example: (tokens,)."""
    pad_index: Tensor
    """Place of each token when rows are padded to one length, an index below rows * length: (tokens,)."""
    pad_inverse: Tensor
    """The token at each of these places, -1 at a free place: (rows * length,)."""
    loss_index: Tensor
    """Indices of the tokens that predict a label, padded with others at the end: (outputs,)."""
    loss_inverse: Tensor
    """The place of each token in `loss_index`, -1 for those that are not in it: (tokens,)."""
    labels: Tensor
    """Target tokens of the first entries of `loss_index`, padded with `IGNORE`: (labels,)."""
    segments: Tensor | None
    """Reference that each token of a row belongs to, from 1; 0 is the MR, which all of them attend to, and -1 padding:
    (rows, length). None if each row is one example."""
    parts: tuple[BatchShape, ...]
    """The shapes of the batches that it consists of, one for each adapter; see `stack`."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; to a GPU it goes in one copy, which the host does not wait for."""
        if device == self.tokens.device:
            return self
        segments = None if self.segments is None else self.segments.to(device)
        return replace(self.unpack(self.pack().to(device, non_blocking=True)), segments=segments)

    def pack(self) -> Tensor:
        """Concatenate the fields `INDICES` in memory that a GPU can copy from by itself: (n,)."""
        packed = torch.cat([getattr(self, name) for name in INDICES])
        return packed.pin_memory() if torch.cuda.is_available() else packed

    def unpack(self, packed: Tensor) -> "Batch":
        """Return a batch of the same shape whose fields are views of `packed` (n,); inverts `pack`."""
        parts = torch.split(packed, [len(getattr(self, name)) for name in INDICES])
        fields: dict[str, Any] = dict(zip(INDICES, parts, strict=True))
        return replace(self, **fields)


def collate(
    examples: TokenizedExamples, indices: Indices, pad_id: int, shapes: Shapes, *, share_mrs: bool = False
) -> Batch:
    """Concatenate examples and pad them; padding is not attended to and predicts no label.

    Args:
        examples: the corpus.
        indices: the examples of the batch; none if a rank has none but must take part in collectives: (n,).
        pad_id: token id of the padding.
        shapes: chooses the shape of the batch.
        share_mrs: combine neighbours with the same MR into one row: the MR once, then `<|ref|>` and reference of each.
            Their positions are those of separate rows.
    """
    mrs, prompts = examples.mrs[indices], examples.prompt_lengths[indices]
    leads = np.ones(len(indices), bool)
    if share_mrs:
        leads[1:] = mrs[1:] != mrs[:-1]
    offsets = np.where(leads, 0, prompts - 1)  # first token of each example that its row does not have yet
    lengths = examples.lengths[indices] - 1 - offsets
    begins = np.cumsum(lengths) - lengths
    rows, firsts = np.cumsum(leads) - 1, np.flatnonzero(leads)
    owner = np.repeat(np.arange(len(indices)), lengths)  # the example of each token
    places = np.arange(len(owner))
    positions = offsets[owner] + places - begins[owner]
    sources = examples.starts[indices][owner] + positions
    predicts = positions >= prompts[owner] - 1
    longest = int(np.add.reduceat(lengths, firsts).max()) if len(firsts) else 0
    shape = shapes.fit(Contents(len(firsts), len(places), longest, int(predicts.sum())))
    pad_index = rows[owner] * shape.length + places - begins[firsts][rows][owner]
    segments = None
    if not leads.all():
        segments = torch.full((shape.rows, shape.length), -1)
        references = np.where(predicts, owner - firsts[rows][owner] + 1, 0)
        segments.view(-1)[torch.from_numpy(pad_index)] = torch.from_numpy(references)
    padding = shape.tokens - len(places)
    pad_index, pad_inverse = _complete(pad_index, shape.tokens, shape.rows * shape.length)
    loss_index, loss_inverse = _complete(np.flatnonzero(predicts), shape.outputs, shape.tokens)
    labels = examples.ids[sources[predicts] + 1]
    return Batch(
        shape=shape,
        tokens=_padded(examples.ids[sources], padding, pad_id),
        positions=_padded(positions, padding, 0),
        pad_index=torch.from_numpy(pad_index),
        pad_inverse=torch.from_numpy(pad_inverse),
        loss_index=torch.from_numpy(loss_index),
        loss_inverse=torch.from_numpy(loss_inverse),
        labels=_padded(labels, shape.labels - len(labels), IGNORE),
        segments=segments,
        parts=(shape,),
    )


def contents_of(examples: TokenizedExamples, indices: Indices) -> Contents:
    """Return the contents of a batch of the examples `indices` (n,), each in a row of its own."""
    lengths = examples.lengths[indices] - 1
    labels = int(examples.label_counts[indices].sum())
    return Contents(len(indices), int(lengths.sum()), int(lengths.max(initial=0)), labels)


def stack(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches, one for each adapter; the labels of each then end with its own padding."""
    if len(batches) == 1:
        return batches[0]
    assert all(batch.segments is None for batch in batches), "references that share an MR are not stacked"
    parts = tuple(batch.shape for batch in batches)
    tokens = np.cumsum([0, *(part.tokens for part in parts)]).tolist()
    places = np.cumsum([0, *(part.rows * part.length for part in parts)]).tolist()
    outputs = np.cumsum([0, *(part.outputs for part in parts)]).tolist()

    def shifted(name: str, offsets: list[int]) -> Tensor:
        """Concatenate indices into concatenated tensors; -1, for none, stays."""
        indices = [getattr(batch, name) for batch in batches]
        return torch.cat([torch.where(i < 0, i, i + by) for i, by in zip(indices, offsets, strict=False)])

    shape = BatchShape(
        tokens[-1],
        sum(part.rows for part in parts),
        max(part.length for part in parts),
        outputs[-1],
        sum(part.labels for part in parts),
    )
    return Batch(
        shape=shape,
        tokens=torch.cat([batch.tokens for batch in batches]),
        positions=torch.cat([batch.positions for batch in batches]),
        pad_index=shifted("pad_index", places),
        pad_inverse=shifted("pad_inverse", tokens),
        loss_index=shifted("loss_index", tokens),
        loss_inverse=shifted("loss_inverse", outputs),
        labels=torch.cat([batch.labels for batch in batches]),
        segments=None,
        parts=parts,
    )


def padding_batch(examples: TokenizedExamples, pad_id: int, shape: BatchShape) -> Batch:
    """Return a batch of a given shape that is all padding."""
    return collate(examples, np.empty(0, np.int64), pad_id, StaticShapes((shape,)))


def _complete(index: Indices, size: int, places: int) -> tuple[Indices, Indices]:
    """Append the first free places to distinct ones until there are `size`, and invert the result.

    Args:
        index: distinct places: (n,).
        size: entries to return, n <= size <= places.
        places: number of places.

    Returns:
        The index (size,), and its inverse, -1 at a place that is not in it: (places,).
    """
    inverse = np.full(places, -1)
    inverse[index] = np.arange(len(index))
    free = np.flatnonzero(inverse < 0)[: size - len(index)]
    inverse[free] = np.arange(len(index), size)
    return np.append(index, free), inverse


def _padded(values: npt.NDArray[np.integer[Any]], padding: int, value: int) -> Tensor:
    return torch.from_numpy(np.append(values, np.full(padding, value)).astype(np.int64))
