"""Kernels for GPUs: torch's fused attention, and every tensor in one piece, as kernel launches are what costs time."""

import logging
import math
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_dist.model.kernels.common import Projection, ban_values, top_of_blocks, whole_blocks
from lora_dist.model.kernels.common import drop as plain_drop
from lora_dist.model.kernels.graphs import CudaGraphs, GraphRecorder
from lora_dist.model.lora import LoraConv1D

log = logging.getLogger(__name__)

SHAPE_STEP = 16
"""See `cpu.SHAPE_STEP`; the cost of a static shape is in its tokens."""

STATIC_SHAPES = 12
"""See `cpu.STATIC_SHAPES`. With 12, E2E's batches of 8 grow by 5.4 %, with a shape for each multiple of 16 by 2.0 %."""

DEV_BATCH_SIZE = 64
"""See `cpu.DEV_BATCH_SIZE`; with few examples, the time is that of the kernel launches."""

DRAW_AT_ONCE = True
"""See `cpu.DRAW_AT_ONCE`; one kernel instead of one for each layer."""

BATCHED_ADAPTERS = True
"""See `cpu.BATCHED_ADAPTERS`; one kernel instead of one for each adapter."""

MAX_LOGITS = 2**24
"""See `cpu.MAX_LOGITS`; 32 MiB in bf16, enough for 8 of E2E's examples."""

CHUNK_TOKENS = 2**19
"""See `cpu.CHUNK_TOKENS`; with E2E's 630 prompts and 64 tokens of 10 beams there is one chunk."""

STEPS_PER_BLOCK = 8
"""See `cpu.STEPS_PER_BLOCK`; the host launches a block's steps as CUDA graphs without waiting for any of them."""

LEAVE_AT = 1 / 4
"""See `cpu.LEAVE_AT`; after it, the step is captured anew, which takes as long as some steps."""

CACHE_STEP = 64
"""See `cpu.CACHE_STEP`; the cache is as large as what beams can still see, and attention reads all of it."""

SEARCH_LOGITS = 2**26
"""See `cpu.SEARCH_LOGITS` (256 MiB in fp32)."""


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
    # Not made contiguous: cuBLAS reads the cache where it is, and transposes in the product.
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.transpose(2, 3)
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
    """The output projection with zero rows up to whole blocks, in the memory of the weight itself.

    cuBLAS has fast kernels only for multiples of 8. The logits of the zero rows are 0 and contribute nothing to the
    gradient.
    """

    def __init__(self, weight: Tensor) -> None:
        """Move `weight` (vocabulary, width) into the first rows of a larger matrix."""
        self.columns = whole_blocks(len(weight))
        self._padded = weight.detach().new_zeros(self.columns, weight.shape[1])
        self._padded[: len(weight)] = weight.detach()
        weight.data = self._padded[: len(weight)]

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`; the columns beyond the vocabulary are 0."""
        return torch.mm(hidden, self._padded.t()) if out is None else torch.mm(hidden, self._padded.t(), out=out)

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`; the columns beyond the vocabulary must be finite."""
        return logits @ self._padded


def projection(weight: Tensor, *, differentiable: bool) -> Projection:
    """See `cpu.projection`; the same for training and decoding."""
    return PaddedProjection(weight)


@cache
def _triton() -> ModuleType | None:
    """Return the Triton kernels, or None with a warning where one fails: Triton compiles them when they first run."""
    try:
        from lora_dist.model.kernels import fused

        fused.exponentiate(torch.zeros(1, 1, device="cuda"))
    except Exception as error:  # its compilers raise errors of many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        log.warning("slower kernels are used, as Triton's failed, which need a C compiler: %s", reason)
        return None
    return fused


def _triton_for(values: Tensor) -> ModuleType | None:
    return _triton() if values.is_cuda else None


def drop(x: Tensor, drawn: Tensor, limits: int | Tensor) -> tuple[Tensor, Tensor]:
    """See `common.drop`; in one pass, and one for the gradient."""
    if (fused := _triton_for(x)) is not None:
        both: tuple[Tensor, Tensor] = fused.Drop.apply(x, drawn, limits)
        return both
    return plain_drop(x, drawn, limits)


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `cpu.exponentiate`; all rows at once."""
    if (fused := _triton_for(logits)) is not None:
        powers: tuple[Tensor, Tensor] = fused.exponentiate(logits)
        return powers
    logarithms = F.log_softmax(logits, -1, dtype=torch.float32)
    normaliser = logits[:, :1].float() - logarithms[:, :1]
    torch.exp(logarithms, out=logits)
    return normaliser, torch.ones_like(normaliser)


def top_tokens(logits: Tensor, vocabulary: int, tokens: Tensor, banned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `cpu.top_tokens`; all rows at once, or many with torch's operators. The columns are whole blocks."""
    if (fused := _triton_for(logits)) is not None:
        peaks, totals, maxima = fused.ban(logits, vocabulary, tokens, banned)
        best, ids = top_of_blocks(logits, k, maxima)
        return (best.float() - peaks) - totals.log(), ids.clamp_(max=vocabulary - 1)
    logits[:, vocabulary:].fill_(-torch.inf)
    values, found = ban_values(banned), []
    rows = max(1, SEARCH_LOGITS // vocabulary)
    for piece, named, limits in zip(*(torch.split(each, rows) for each in (logits, tokens, values)), strict=True):
        scores = F.log_softmax(piece, -1, dtype=torch.float32)
        scores.scatter_reduce_(-1, named, limits, "amin")
        found.append(top_of_blocks(scores, k))
    return torch.cat([best for best, _ in found]), torch.cat([ids for _, ids in found]).clamp_(max=vocabulary - 1)
