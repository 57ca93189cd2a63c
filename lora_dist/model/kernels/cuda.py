"""Kernels for GPUs: torch's fused attention, and every tensor in one piece, as kernel launches are what costs time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.model.kernels.common import (
    PlainProjection,
    Projection,
    ban_values,
    exponentiate_rows,
    padded_vocabulary,
    top_tokens_of_rows,
)

SHAPE_STEP = 16
"""See `cpu.SHAPE_STEP`; CUDA graphs would need few shapes too."""

CHUNK_TOKENS = 2**16
"""See `cpu.CHUNK_TOKENS`."""


def set_up_process() -> None:
    """Do nothing: a process on a GPU needs no set-up."""


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """See `cpu.attention`."""
    mask = None if visible is None else visible[:, None]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None)


def cached_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """See `cpu.cached_attention`."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.contiguous().transpose(2, 3)
    return scores.add_(mask).softmax(-1) @ values


def freeze_layers(model: GPT2LMHeadModel, *, differentiable: bool) -> None:
    """Do nothing: a GPU multiplies with plain matrices."""


def projection(weight: Tensor, *, differentiable: bool) -> Projection:
    """See `cpu.projection`; for decoding the vocabulary is the contiguous dimension, which is faster with few rows."""
    return PlainProjection(weight if differentiable else weight.detach().t().contiguous().t())


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `cpu.exponentiate`."""
    return exponentiate_rows(logits)


def top_tokens(logits: Tensor, tokens: Tensor, banned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `cpu.top_tokens`."""
    columns = padded_vocabulary(logits.shape[1], k)
    buffers = logits.new_full((2, len(logits), columns), -torch.inf, dtype=torch.float32)
    return top_tokens_of_rows(logits, tokens, ban_values(banned), k, buffers)
