"""Dropout masks of the adapters' inputs, drawn faster than by torch's own dropout."""

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


def draw_masks(
    features: Sequence[int],
    rows: Sequence[int],
    most: int,
    limits: int | Tensor,
    generators: Generators,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """Draw the dropout masks of several layers and adapters at once.

    Each adapter draws as many numbers as for `most` rows, so that its masks depend on its generator alone: a GPU's
    numbers depend on how many are drawn, and batches of several adapters are padded to another size than one's own.

    Args:
        features: columns of each layer's mask: (layers,).
        rows: rows of each layer's mask, per adapter: (layers,).
        most: rows to draw for, none of `rows` is larger.
        limits: see `keep_limit`; a tensor if the adapters differ in it: (adapters, 1, 1) int16.
        generators: one for each adapter: (adapters,).
        dtype: of the masks.
        device: of the masks.

    Returns:
        The mask of each layer: (adapters, rows, features) each.
    """
    assert max(rows) <= most, "a batch has more tokens than the largest possible one"
    sizes = [most * width for width in features]
    drawn = torch.empty(len(generators), math.ceil(sum(sizes) / 4), dtype=torch.int64, device=device)
    for own, generator in zip(drawn, generators, strict=True):
        own.random_(-(2**63), None, generator=generator)
    quarters = drawn.view(torch.int16)[:, : sum(sizes)]
    if len(generators) == 1:  # one comparison for all layers
        whole = torch.ge(quarters, limits, out=torch.empty(quarters.shape, dtype=dtype, device=device))
        parts = zip(torch.split(whole, sizes, dim=1), rows, features, strict=True)
        return [part[:, : n * width].view(1, n, width) for part, n, width in parts]
    masks = []
    for part, n, width in zip(torch.split(quarters, sizes, dim=1), rows, features, strict=True):
        shape = len(generators), n, width
        own = part[:, : n * width].view(shape)
        masks.append(torch.ge(own, limits, out=torch.empty(shape, dtype=dtype, device=device)))
    return masks
