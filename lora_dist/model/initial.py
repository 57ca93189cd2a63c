"""Initial values of an adapter."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_dist.config import LoraSettings


def draw(shape: Sequence[int], settings: LoraSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the initial A (r, in) and B (out, r) for a weight of `shape` (in, out).

    With pairs for parts of the layer, theirs are stacked: A (pairs r, in) and B (pairs out / 3, r).
    """
    (in_features, out), rank, pairs = shape, settings.rank, max(1, len(settings.parts))
    out_features = out // 3 * pairs if settings.parts else out
    a = torch.randn(rank * pairs, in_features, generator=generator) / rank
    if settings.init == "kaiming":
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    b = torch.zeros(out_features, rank)
    if settings.init == "gaussian":
        b = torch.randn(out_features, rank, generator=generator) / rank
    return a, b
