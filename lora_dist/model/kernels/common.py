"""Kernels that CPUs and GPUs have in common; `cpu.py` and `cuda.py` choose how many rows to compute at a time."""

import math
from typing import Protocol

import torch
from torch import Tensor

BLOCK_SIZE = 64
"""Block size of the two-stage top-k: block maxima first, then top-k within the best blocks."""


class Projection(Protocol):
    """The frozen output projection with weight W (vocabulary, width)."""

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute `hidden` W^T: (n, vocabulary).

        Args:
            hidden: last hidden states: (n, width).
            out: a buffer that the result may be written to: (n, vocabulary).
        """
        ...

    def gradient(self, logits: Tensor) -> Tensor:
        """Compute `logits` W, the gradient of `hidden` given that of the logits (n, vocabulary): (n, width)."""
        ...


class PlainProjection:
    """The projection with torch's own product; under ZeRO-3 the weight may be partitioned between two uses."""

    def __init__(self, weight: Tensor) -> None:
        """Keep a reference to `weight` (vocabulary, width), not a copy."""
        self._weight = weight

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`."""
        return torch.mm(hidden, self._weight.t()) if out is None else torch.mm(hidden, self._weight.t(), out=out)

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`."""
        return logits @ self._weight


def top_tokens_of_rows(
    logits: Tensor, tokens: Tensor, values: Tensor, k: int, buffers: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the `k` most likely tokens of each row that are not banned.

    The best `k` of a row can only be in the `k` blocks with the largest maxima, so only these are searched.

    Args:
        logits: logits of the next token: (n, vocabulary).
        tokens: tokens that may be banned, each any number of times: (n, m).
        values: -inf where the token is banned, inf where it is not: (n, m).
        k: tokens to find per row, at most the vocabulary size.
        buffers: two buffers of `padded_vocabulary` columns, -inf beyond the vocabulary: (2, n, columns) fp32.

    Returns:
        Log-probabilities (fp32) and token ids, best first: both (n, k).
    """
    rows, vocabulary = logits.shape
    shifted, powers = buffers
    shifted[:, :vocabulary] = logits
    shifted -= shifted.amax(-1, keepdim=True)
    normaliser = torch.exp(shifted, out=powers).sum(-1, keepdim=True).log_()
    # A token may occur several times and be banned only at some of them, so take the minimum.
    shifted.scatter_reduce_(-1, tokens, values, "amin")
    blocked = shifted.view(rows, -1, BLOCK_SIZE)
    likely = blocked.amax(-1).topk(k, -1).indices
    inside, places = blocked.gather(1, likely[..., None].expand(-1, -1, BLOCK_SIZE)).flatten(1).topk(k, -1)
    found = likely.gather(1, places // BLOCK_SIZE) * BLOCK_SIZE + places % BLOCK_SIZE
    return inside - normaliser, found.clamp_(max=vocabulary - 1)


def padded_vocabulary(vocabulary: int, k: int) -> int:
    """Round a vocabulary size up to whole blocks, and to at least `k` blocks."""
    return math.ceil(max(vocabulary, k * BLOCK_SIZE) / BLOCK_SIZE) * BLOCK_SIZE


def ban_values(banned: Tensor) -> Tensor:
    """Convert `banned` (n, m) to the `values` of `top_tokens_of_rows`: -inf where True, else inf."""
    return torch.where(banned, -torch.inf, torch.inf)
