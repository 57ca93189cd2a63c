"""Kernels for CPU cores: frozen weights packed for oneDNN, and everything wide in pieces that fit the cache.

oneDNN computes with a blocked copy of a weight, and makes it anew in each product that is given a plain matrix: in bf16
a tenth of a product with 464 rows, a third of one with 32. A frozen weight needs it only once. Products in fp32 go to
MKL otherwise, which on AMD's processors takes more than twice as long.
"""

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_dist.model.compat import can_pack, pack, product
from lora_dist.model.kernels.common import (
    PlainProjection,
    Projection,
    ban_values,
    exponentiate_rows,
    padded_vocabulary,
    top_tokens_of_rows,
)

SHAPE_STEP = 16
"""Tokens and labels of a forward pass, and the padded row length, are rounded up to a multiple of this. Each shape of a
product has code of its own made for it, which takes some milliseconds and 0.7 MiB for good: a training of GPT-2 Small
in bf16 held 1,416 MiB with 32, 1,522 with 16, 1,671 with 8."""

CHUNK_TOKENS = 2**14
"""Tokens of a decode chunk beyond which it decodes no faster."""

OWN_MEMORY = False
"""Whether each process has memory of its own; those on CPU cores share the machine's."""

LOSS_LOGITS = 2**18
"""Logits of the loss that are exponentiated at a time (1 MiB in fp32)."""

SEARCH_LOGITS = 2**19
"""Logits of the beam search that are looked through at a time (2 MiB in fp32)."""


def set_up_process() -> None:
    """Let the C library keep what tensors free, where it is glibc's.

    By default it hands large blocks back to the system, which then clears their pages again at each step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes: its largest value
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def _return_freed_memory() -> None:
    """Hand back to the system, once, what `set_up_process` has kept; glibc's C library can."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Attention of each token to itself and those before it in its row: (rows, heads, length, head width).

    Written out, as torch's fused kernel takes five times as long on a CPU, forward and backward at E2E's lengths.

    Args:
        query: (rows, heads, length, head width); `key` and `value` likewise.
        key: of each token.
        value: of each token.
        visible: which tokens each may attend to, none after it: (rows, length, length); None is all of them.
        dropout: probability of dropping an attention weight.
    """
    length = query.shape[2]
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if visible is None else ~visible[:, None]
    bias = torch.zeros(hidden.shape, dtype=scores.dtype).masked_fill_(hidden, -torch.inf)
    weights = (scores + bias).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ value


def cached_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of new tokens to the entries of a cache: (prompts, heads, new, head width).

    Not torch's fused kernel, which takes up to twice as long with ten queries. The keys are made dense, as oneDNN would
    do itself, and after transposing them.

    Args:
        query: (prompts, heads, new, head width).
        keys: of the cache: (prompts, heads, entries, head width); `values` likewise.
        values: of the cache.
        mask: 0 or -inf, added to the scores: (prompts, 1, new, entries).
    """
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.contiguous().transpose(2, 3)
    return scores.add_(mask).softmax(-1) @ values


class PackedLinear(nn.Module):
    """A frozen linear layer that holds its weight in packed copies only."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, differentiable: bool) -> None:
        """Pack a weight (out, in) with bias (out,); if `differentiable`, a gradient can flow to the input."""
        super().__init__()
        assert not weight.requires_grad, "only what is frozen can be packed"
        self.bias = bias
        # No parameters: nobody is to broadcast, save or convert them.
        self._packed = pack(weight)
        self._transposed = pack(weight.t()) if differentiable else None
        self.gelu = False
        """Whether GELU follows, which then takes no pass over the result; such a layer is not differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        if self._transposed is None:
            return product(x, self._packed, self.bias, gelu=self.gelu)
        result: Tensor = _PackedProduct.apply(x, self._packed, self._transposed, self.bias)  # type: ignore[no-untyped-call]
        return result


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return product(x, packed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return product(gradient, ctx.transposed), None, None, None


def freeze_layers(model: GPT2LMHeadModel, *, differentiable: bool) -> None:
    """Lay out the frozen layers of `model` for fast products, in place, adapters around them or not.

    All `Conv1D` are packed and their plain weights freed; the model then serves only this purpose. Without a gradient
    the activation becomes part of the product before it. Nothing changes where torch cannot pack.

    Args:
        model: frozen but for its adapter.
        differentiable: whether a gradient has to flow through.
    """
    if not can_pack(model.dtype):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, PackedLinear(child.weight.t(), child.bias, differentiable=differentiable))
    del child  # the last of them
    for block in model.transformer.h:
        if not differentiable and isinstance(block.mlp.act, nn.GELU):  # as `gpt2.fuse_activation` left it
            block.mlp.c_fc.gelu = True
            block.mlp.act = nn.Identity()
    for parameter in model.parameters():
        # Loaded tensors are pages of a file, of which one that is held holds them all in memory.
        parameter.data = parameter.data.clone()
    _return_freed_memory()


class PackedProjection:
    """The output projection with packed copies of its weight, as the tied embedding has to stay as it is."""

    def __init__(self, weight: Tensor, *, differentiable: bool) -> None:
        """Pack `weight` (vocabulary, width), for the gradient a second time."""
        self._packed = pack(weight)
        self._transposed = pack(weight.t()) if differentiable else None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`; oneDNN's product has a buffer of its own."""
        return product(hidden, self._packed)

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`."""
        assert self._transposed is not None, "made for decoding, which has no gradient"
        return product(logits, self._transposed)


def projection(weight: Tensor, *, differentiable: bool) -> Projection:
    """Lay out the frozen output projection `weight` (vocabulary, width) for fast products.

    Args:
        weight: stays as it is.
        differentiable: whether `Projection.gradient` will be called.
    """
    if can_pack(weight.dtype):
        return PackedProjection(weight, differentiable=differentiable)
    return PlainProjection(weight if differentiable else weight.detach().t().contiguous().t())


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Make logits (labels, vocabulary) exp(logit - maximum) in place; each row's maximum and sum: (labels, 1) fp32.

    A few rows at a time, as it takes longer to get a fresh buffer for all in fp32 than to compute them.
    """
    parts = [exponentiate_rows(part) for part in torch.split(logits, max(1, LOSS_LOGITS // logits.shape[1]))]
    if not parts:
        return (empty := logits.new_empty(0, 1, dtype=torch.float32)), empty
    return torch.cat([maximum for maximum, _ in parts]), torch.cat([total for _, total in parts])


def top_tokens(logits: Tensor, tokens: Tensor, banned: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (fp32) and ids of the most likely tokens that are not banned, best first: both (rows, count).

    Args:
        logits: (rows, vocabulary).
        tokens: tokens that may be banned, repetitions included: (rows, n).
        banned: whether they are: (rows, n).
        count: tokens wanted, at most the vocabulary size.
    """
    rows = max(1, SEARCH_LOGITS // logits.shape[1])
    columns = padded_vocabulary(logits.shape[1], count)
    room = logits.new_full((2, min(rows, len(logits)), columns), -torch.inf, dtype=torch.float32)
    values, found = ban_values(banned), []
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        piece = logits[part]
        found.append(top_tokens_of_rows(piece, tokens[part], values[part], count, room[:, : len(piece)]))
    return torch.cat([best for best, _ in found]), torch.cat([ids for _, ids in found])
