"""Dropout of the adapters' inputs, drawn faster than by torch's own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = Sequence[torch.Generator | None]
"""Where the random numbers of each adapter come from; None is torch's default generator."""


def keep_limit(dropout: float) -> int:
    """Return the smallest random 16-bit integer that keeps an element, which rounds the probability to 2**-16."""
    return round(2**16 * dropout) - 2**15


def keep_mask(
    shape: Sequence[int],
    dropout: float,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a dropout mask of any shape and dtype: 1 keeps an element, 0 drops it.

    The probability is rounded to a multiple of 2**-16, as four decisions come from one random 64-bit integer. Torch's
    own dropout draws one integer per element, which on a CPU takes longer than the product with A.
    """
    size = math.prod(shape)
    drawn = torch.empty(math.ceil(size / 4), dtype=torch.int64, device=device).random_(
        -(2**63), None, generator=generator
    )
    quarters = drawn.view(torch.int16)[:size].view(shape)
    return torch.ge(quarters, keep_limit(dropout), out=torch.empty(shape, dtype=dtype, device=device))


def draw_integers(
    features: Sequence[int], rows: Sequence[int], most: int, generators: Generators, device: torch.device
) -> list[Tensor]:
    """Draw the random 16-bit integers of several layers and adapters at once, see `keep_limit`.

    Each adapter draws as many as for `most` rows, so that its integers depend on its generator alone: a GPU's depend on
    how many are drawn, and batches of several adapters are padded to another size than one's own.

    Args:
        features: input features of each layer: (layers,).
        rows: rows of each layer's input, per adapter: (layers,).
        most: rows to draw for, none of `rows` is larger.
        generators: one for each adapter: (adapters,).
        device: where to draw.

    Returns:
        Those of each layer: (adapters, rows, features) int16 each.
    """
    assert max(rows) <= most, "a batch has more tokens than the largest possible one"
    sizes = [most * width for width in features]
    drawn = torch.empty(len(generators), math.ceil(sum(sizes) / 4), dtype=torch.int64, device=device)
    for own, generator in zip(drawn, generators, strict=True):
        own.random_(-(2**63), None, generator=generator)
    quarters = torch.split(drawn.view(torch.int16)[:, : sum(sizes)], sizes, dim=1)
    return [
        part[:, : n * width].view(len(generators), n, width)
        for part, n, width in zip(quarters, rows, features, strict=True)
    ]
