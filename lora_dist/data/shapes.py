"""Shapes of batches: rounded up for each batch, or a few static shapes that CUDA graphs are captured for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lora_dist.data.sampler import Indices


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch, including its padding."""

    tokens: int
    """Tokens of all rows."""
    rows: int
    """Rows: examples, or groups of examples that share an MR."""
    length: int
    """Tokens of a row when all rows are padded to one length."""
    outputs: int
    """Tokens whose last hidden state is computed, at least one."""
    labels: int
    """Label slots; those without a label are ignored."""

    @property
    def work(self) -> int:
        """Cost of a step, in units of half a token; see `TokenizedExamples.work`."""
        return 2 * self.tokens + self.outputs


SMALLEST = BatchShape(tokens=1, rows=1, length=1, outputs=1, labels=0)
"""Shape of the smallest batch."""


class Contents(NamedTuple):
    """The sizes of a batch without padding."""

    rows: int
    """Rows: examples, or groups of examples that share an MR."""
    tokens: int
    """Tokens of all rows, without the examples' last ones."""
    longest: int
    """Tokens of the longest row, counted in the same way."""
    labels: int
    """Tokens to predict."""


class Shapes(Protocol):
    """Chooses the shape of each batch."""

    def fit(self, contents: Contents) -> BatchShape:
        """Return a shape that holds `contents`."""
        ...

    def for_all(self, contents: Sequence[Contents]) -> "Shapes":
        """Return the shapes of batches that are computed together, one for each adapter."""
        ...


@dataclass(frozen=True)
class RoundedShapes:
    """A shape for each batch: tokens, outputs and the row length rounded up to a multiple."""

    multiple: int
    """Tokens to round up to."""

    def fit(self, contents: Contents) -> BatchShape:
        """Return the smallest shape in multiples that holds `contents`."""
        rows, tokens = max(1, contents.rows), self._up(max(1, contents.tokens))
        # The rows together need free places for the padding tokens.
        length = max(self._up(contents.longest), self._up(-(-tokens // rows)))
        return BatchShape(tokens, rows, length, min(tokens, self._up(max(1, contents.labels))), contents.labels)

    def for_all(self, contents: Sequence[Contents]) -> "RoundedShapes":
        """Let each batch have its own shape."""
        return self

    def _up(self, value: int) -> int:
        return -(-value // self.multiple) * self.multiple


@dataclass(frozen=True)
class StaticShapes:
    """A few shapes, of which a batch gets the first that holds it."""

    shapes: tuple[BatchShape, ...]
    """The shapes in the order of their work."""

    def fit(self, contents: Contents) -> BatchShape:
        """Return the shape with the least work that holds `contents`."""
        for shape in self.shapes:
            if (
                contents.rows <= shape.rows
                and contents.tokens <= shape.tokens
                and contents.longest <= shape.length
                and contents.labels <= shape.labels
            ):
                return shape
        raise AssertionError(f"no static shape holds {contents}")

    def for_all(self, contents: Sequence[Contents]) -> "StaticShapes":
        """Let all batches have the same shape, the one with the least work that holds each of them."""
        return StaticShapes((self.fit(Contents(*map(max, zip(*contents, strict=True)))),))


def static_shapes(contents: Indices, counts: Indices, most: int, multiple: int) -> StaticShapes:
    """Choose shapes of which every batch finds one that holds it, with the least work over all batches.

    Batches are sorted by their tokens and split into groups; each group's shape has the largest sizes in it. The split
    is found by dynamic programming over the ends of the groups.

    Args:
        contents: fields of `Contents` of the batches: (n, 4).
        counts: how often each occurs: (n,).
        most: most shapes to choose.
        multiple: sizes are multiples of this.
    """
    whole = RoundedShapes(multiple)
    fine = [whole.fit(Contents(int(contents[:, 0].max()), *row)) for row in contents[:, 1:].tolist()]
    tokens, group = np.unique([shape.tokens for shape in fine], return_inverse=True)
    weights, outputs, lengths = (np.zeros(len(tokens), np.int64) for _ in range(3))
    np.add.at(weights, group, counts)
    np.maximum.at(outputs, group, [shape.outputs for shape in fine])
    np.maximum.at(lengths, group, [shape.length for shape in fine])
    found = []
    for first, end in _groups(tokens, outputs, weights, most):
        slots = int(outputs[first:end].max())
        shape = BatchShape(int(tokens[end - 1]), fine[0].rows, int(lengths[first:end].max()), slots, slots)
        found.append(shape)
    return StaticShapes(tuple(sorted(found, key=lambda shape: shape.work)))


def _groups(tokens: Indices, outputs: Indices, weights: Indices, most: int) -> Sequence[tuple[int, int]]:
    """Split sizes into at most `most` intervals, so that rounding up to the largest of each adds the least work.

    Args:
        tokens: distinct sizes in ascending order: (n,).
        outputs: most outputs of a batch of each size: (n,).
        weights: batches of each size: (n,).
        most: most intervals.
    """
    size = len(tokens)
    cost: npt.NDArray[np.float64] = np.full((size, size), np.inf)  # of the interval from i to j, both included
    for first in range(size):
        slots = np.maximum.accumulate(outputs[first:])
        cost[first, first:] = np.cumsum(weights[first:]) * (2 * tokens[first:] + slots)
    # best[k][j]: least cost of the first j sizes in k intervals; begins[k][j]: where the last of these intervals begins
    best, begins = [np.append(0.0, np.full(size, np.inf))], [np.zeros(size + 1, np.int64)]
    for _ in range(min(most, size)):
        total = best[-1][:-1, None] + cost
        best.append(np.append(np.inf, total.min(0)))
        begins.append(np.append(0, total.argmin(0)))
    intervals: list[tuple[int, int]] = []
    end, number = size, int(np.argmin([row[size] for row in best]))
    while end:
        first = int(begins[number][end])
        intervals.append((first, end))
        end, number = first, number - 1
    return intervals
