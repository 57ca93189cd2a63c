"""Kernels that CPUs and GPUs have in common; `cpu.py` and `cuda.py` choose how many rows to compute at a time."""

import math
from typing import Protocol

import torch
from torch import Tensor

BLOCK_SIZE = 64
"""Block size of the two-stage top-k: block maxima first, then top-k within the best blocks."""


class Projection(Protocol):
    """The frozen output projection with weight W (vocabulary, width)."""

    @property
    def columns(self) -> int:
        """Columns of the logits, at least the vocabulary size."""
        ...

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute `hidden` W^T: (n, columns).

        Args:
            hidden: last hidden states: (n, width).
            out: a buffer that the result may be written to: (n, columns).
        """
        ...

    def gradient(self, logits: Tensor) -> Tensor:
        """Compute `logits` W, the gradient of `hidden` given that of the logits (n, columns): (n, width)."""
        ...


class PlainProjection:
    """The projection with torch's own product; under ZeRO-3 the weight may be partitioned between two uses."""

    def __init__(self, weight: Tensor) -> None:
        """Keep a reference to `weight` (vocabulary, width), not a copy."""
        self._weight = weight
        self.columns = len(weight)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`."""
        return torch.mm(hidden, self._weight.t()) if out is None else torch.mm(hidden, self._weight.t(), out=out)

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`."""
        return logits @ self._weight


def drop(x: Tensor, drawn: Tensor, limits: int | Tensor) -> tuple[Tensor, Tensor]:
    """Return `x`, and `x` with zeros where a random integer is below the limit: both (rows, features).

    Both are inputs of a layer, and so their gradients can be added as they are computed.

    Args:
        x: values of several adapters, one after the other: (rows, features).
        drawn: a random integer for each, see `masks.draw_integers`: (adapters, rows / adapters, features) int16.
        limits: see `masks.keep_limit`; a tensor if the adapters differ in it: (adapters, 1, 1) int16.
    """
    kept = torch.ge(drawn, limits, out=torch.empty(drawn.shape, dtype=x.dtype, device=x.device))
    return x, x * kept.flatten(0, 1)


def top_of_blocks(scores: Tensor, k: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the `k` largest values of each row.

    They can only be in the `k` blocks with the largest maxima, so only these are searched.

    Args:
        scores: (n, columns), whole blocks.
        k: values to find per row, at most the number of columns.
        maxima: the maximum of each block, if it is known: (n, columns / `BLOCK_SIZE`).

    Returns:
        Values and columns, largest first: both (n, k).
    """
    rows, columns = scores.shape
    blocked = scores.view(rows, columns // BLOCK_SIZE, BLOCK_SIZE)
    maxima = blocked.amax(-1) if maxima is None else maxima
    likely = maxima.topk(min(k, blocked.shape[1]), -1).indices
    best, places = blocked.gather(1, likely[..., None].expand(-1, -1, BLOCK_SIZE)).flatten(1).topk(k, -1)
    return best, likely.gather(1, places // BLOCK_SIZE) * BLOCK_SIZE + places % BLOCK_SIZE


def whole_blocks(vocabulary: int) -> int:
    """Round a vocabulary size up to whole blocks."""
    return math.ceil(vocabulary / BLOCK_SIZE) * BLOCK_SIZE


def ban_values(banned: Tensor) -> Tensor:
    """Convert `banned` (n, m) to values whose minimum with a score bans it: -inf where True, else inf."""
    return torch.where(banned, -torch.inf, torch.inf)
