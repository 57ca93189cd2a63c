"""Kernels for GPUs: torch's fused attention, and every tensor in one piece, as kernel launches are what costs time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_dist.model.kernels.common import (
    PlainProjection,
    Projection,
    ban_values,
    padded_vocabulary,
    top_tokens_of_rows,
)
from lora_dist.model.kernels.graphs import CudaGraphs, GraphRecorder
from lora_dist.model.lora import LoraConv1D

SHAPE_STEP = 16
"""See `cpu.SHAPE_STEP`; the cost of a static shape is in its tokens."""

STATIC_SHAPES = 12
"""See `cpu.STATIC_SHAPES`. With 12, E2E's batches of 8 grow by 5.4 %, with a shape for each multiple of 16 by 2.0 %."""

DEV_BATCH_SIZE = 64
"""See `cpu.DEV_BATCH_SIZE`; with few examples, the time is that of the kernel launches."""

DRAW_MASKS_AT_ONCE = True
"""See `cpu.DRAW_MASKS_AT_ONCE`; two kernels instead of two for each layer."""

BATCHED_ADAPTERS = True
"""See `cpu.BATCHED_ADAPTERS`; one kernel instead of one for each adapter."""

MAX_LOGITS = 2**24
"""See `cpu.MAX_LOGITS`; 160 MiB in bf16 and its two fp32 buffers, enough for 8 of E2E's examples."""

VOCABULARY_STEP = 64
"""Rows of the output projection in training are a multiple of this."""

CHUNK_TOKENS = 2**16
"""See `cpu.CHUNK_TOKENS`."""


def set_up_process() -> None:
    """Do nothing: a process on a GPU needs no set-up."""


def graph_recorder(device: torch.device) -> GraphRecorder:
    """See `cpu.graph_recorder`."""
    return CudaGraphs(device)


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """See `cpu.attention`."""
    mask = None if visible is None else visible[:, None]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None)


def cached_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """See `cpu.cached_attention`."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.contiguous().transpose(2, 3)
    return scores.add_(mask).softmax(-1) @ values


class FrozenLinear(nn.Module):
    """A frozen `Conv1D` for matrices only, whose result is therefore no view."""

    def __init__(self, layer: Conv1D) -> None:
        """Take over weight (in, out) and bias (out,) of a layer."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (n, in) to (n, out)."""
        return torch.addmm(self.bias, x, self.weight)


def freeze_layers(model: GPT2LMHeadModel, *, differentiable: bool) -> None:
    """Let adapters add to the results of frozen layers in place, which saves one kernel each in training."""
    for parent in list(model.modules()):
        if differentiable and isinstance(parent, LoraConv1D):
            parent.base, parent.adds_in_place = FrozenLinear(parent.base), True


class PaddedProjection:
    """The output projection with zero rows up to a multiple of `VOCABULARY_STEP`, in the memory of the weight itself.

    cuBLAS has fast kernels only for multiples of 8. The logits of the zero rows are 0 and contribute nothing to the
    gradient.
    """

    def __init__(self, weight: Tensor) -> None:
        """Move `weight` (vocabulary, width) into the first rows of a larger matrix."""
        rows = math.ceil(len(weight) / VOCABULARY_STEP) * VOCABULARY_STEP
        self._padded = weight.detach().new_zeros(rows, weight.shape[1])
        self._padded[: len(weight)] = weight.detach()
        weight.data = self._padded[: len(weight)]

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`; the columns beyond the vocabulary are 0."""
        return torch.mm(hidden, self._padded.t())

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`; the columns beyond the vocabulary must be finite."""
        return logits @ self._padded


def projection(weight: Tensor, *, differentiable: bool) -> Projection:
    """See `cpu.projection`; for decoding the vocabulary is the contiguous dimension, which is faster with few rows."""
    return PaddedProjection(weight) if differentiable else PlainProjection(weight.detach().t().contiguous().t())


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `cpu.exponentiate`; all rows at once, in three passes."""
    logarithms = F.log_softmax(logits, -1, dtype=torch.float32)
    normaliser = logits[:, :1].float() - logarithms[:, :1]
    torch.exp(logarithms, out=logits)
    return normaliser, torch.ones_like(normaliser)


def top_tokens(logits: Tensor, tokens: Tensor, banned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `cpu.top_tokens`."""
    columns = padded_vocabulary(logits.shape[1], k)
    buffers = logits.new_full((2, len(logits), columns), -torch.inf, dtype=torch.float32)
    return top_tokens_of_rows(logits, tokens, ban_values(banned), k, buffers)
