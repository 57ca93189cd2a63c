"""What both kinds of device compute in the same way; `cpu.py` and `cuda.py` choose how much of it at a time."""

import math
from typing import Protocol

import torch
from torch import Tensor

BLOCK_SIZE = 64
"""Block size of the two-stage top-k: block maxima first, then top-k within the best blocks."""


class Projection(Protocol):
    """The frozen output projection with weight W (vocabulary, width)."""

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute `hidden` W^T: (n, vocabulary), in `out` where the kernel can write there.

        Args:
            hidden: last hidden states: (n, width).
            out: a buffer for the result: (n, vocabulary).
        """
        ...

    def gradient(self, logits: Tensor) -> Tensor:
        """Compute `logits` W, the gradient of `hidden` for a gradient of the logits (n, vocabulary): (n, width)."""
        ...


class PlainProjection:
    """The projection by torch's own product; under ZeRO-3 the weight may be partitioned between two uses."""

    def __init__(self, weight: Tensor) -> None:
        """Keep a reference to `weight` (vocabulary, width), not a copy."""
        self._weight = weight

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`."""
        return torch.mm(hidden, self._weight.t()) if out is None else torch.mm(hidden, self._weight.t(), out=out)

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`."""
        return logits @ self._weight


def exponentiate_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Make logits (n, vocabulary) exp(logit - maximum) in place; each row's maximum and sum: (n, 1) fp32."""
    powers = logits.float()
    maximum = powers.amax(-1, keepdim=True)
    total = powers.sub_(maximum).exp_().sum(-1, keepdim=True)
    logits.copy_(powers)
    return maximum, total


def top_tokens_of_rows(
    logits: Tensor, tokens: Tensor, values: Tensor, count: int, room: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (fp32) and ids of the most likely tokens of each row, best first: both (n, count).

    The best of a row are sought in the `count` blocks with the largest maxima, as they can be nowhere else.

    Args:
        logits: (n, vocabulary).
        tokens: tokens that may be banned, repetitions included: (n, m).
        values: -inf where the token is banned, inf where it is not: (n, m).
        count: tokens wanted, at most the vocabulary size.
        room: two buffers of `padded_vocabulary` columns, -inf behind the vocabulary: (2, n, padded vocabulary) fp32.
    """
    rows, vocabulary = logits.shape
    shifted, powers = room
    shifted[:, :vocabulary] = logits
    shifted -= shifted.amax(-1, keepdim=True)
    normaliser = torch.exp(shifted, out=powers).sum(-1, keepdim=True).log_()
    # A token may occur several times of which only some ban it, so the lowest of its values counts.
    shifted.scatter_reduce_(-1, tokens, values, "amin")
    blocked = shifted.view(rows, -1, BLOCK_SIZE)
    likely = blocked.amax(-1).topk(count, -1).indices
    inside, places = blocked.gather(1, likely[..., None].expand(-1, -1, BLOCK_SIZE)).flatten(1).topk(count, -1)
    found = likely.gather(1, places // BLOCK_SIZE) * BLOCK_SIZE + places % BLOCK_SIZE
    return inside - normaliser, found.clamp_(max=vocabulary - 1)


def padded_vocabulary(vocabulary: int, count: int) -> int:
    """Columns of whole blocks for a vocabulary, at least `count` blocks."""
    return math.ceil(max(vocabulary, count * BLOCK_SIZE) / BLOCK_SIZE) * BLOCK_SIZE


def ban_values(banned: Tensor) -> Tensor:
    """-inf where `banned` (n, m), else inf: the `values` of `top_tokens_of_rows`."""
    return torch.where(banned, -torch.inf, torch.inf)
