"""Kernels for CPU cores: frozen weights packed for oneDNN, and wide tensors in pieces that fit the cache.

oneDNN multiplies with a blocked ("packed") copy of a weight. Given a plain matrix, it makes this copy again in each
product, which in bf16 is a tenth of the time with 464 rows and a third with 32; a frozen weight needs it only once. In
fp32, plain products are left to MKL, which on AMD processors takes more than twice as long.
"""

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
    padded_vocabulary,
    top_tokens_of_rows,
)
from lora_dist.model.kernels.glibc import keep_freed_memory, return_freed_memory
from lora_dist.model.kernels.graphs import GraphRecorder
from lora_dist.model.lora import LoraConv1D

SHAPE_STEP = 16
"""Tokens and labels of a forward pass, and the padded row length, are rounded up to a multiple of this. oneDNN compiles
code for each shape of a product, which takes some milliseconds and 0.7 MiB that it never frees: training GPT-2 Small in
bf16 held 1,416 MiB with 32, 1,522 with 16, 1,671 with 8."""

STATIC_SHAPES = 0
"""Most shapes of the micro-batches of a training; 0 rounds up each by itself, as only CUDA graphs need few shapes."""

DEV_BATCH_SIZE = 16
"""Dev examples per forward pass; the result does not depend on it."""

DRAW_MASKS_AT_ONCE = False
"""Whether the dropout masks of all layers are drawn together; one at a time stays in the cache."""

CHUNK_TOKENS = 2**14
"""Tokens per decoding chunk beyond which decoding gets no faster."""

BATCHED_ADAPTERS = False
"""Whether the products of several adapters with their own rows are one batched product; see `stacked`."""

MAX_LOGITS = 2**26
"""Logits of the loss that are computed at a time (256 MiB in fp32); larger batches are computed in chunks."""

LOSS_LOGITS = 2**18
"""Logits of the loss that are exponentiated at a time (1 MiB in fp32)."""

SEARCH_LOGITS = 2**19
"""Logits of the beam search that are searched at a time (2 MiB in fp32)."""


def set_up_process() -> None:
    """Let the process keep the memory that tensors free."""
    keep_freed_memory()


def graph_recorder(device: torch.device) -> GraphRecorder | None:
    """Return what records CUDA graphs on `device`, or None where there are none."""
    return None


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Compute causal self-attention within each row: (rows, heads, length, head width).

    Torch's fused kernel takes five times as long on a CPU, forward and backward at E2E's lengths.

    Args:
        query: queries: (rows, heads, length, head width).
        key: keys, in the same shape.
        value: values, in the same shape.
        visible: a causal mask, True is visible: (rows, length, length). None shows all tokens up to itself.
        dropout: probability of dropping an attention weight.
    """
    length = query.shape[2]
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if visible is None else ~visible[:, None]
    bias = torch.zeros(hidden.shape, dtype=scores.dtype).masked_fill_(hidden, -torch.inf)
    weights = (scores + bias).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ value


def cached_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Compute the attention of new tokens to the entries of a KV cache: (prompts, heads, new, head width).

    Torch's fused kernel takes up to twice as long with ten queries. The keys are made contiguous before the product;
    oneDNN would otherwise copy them itself, after the transposition.

    Args:
        query: queries of the new tokens: (prompts, heads, new, head width).
        keys: keys of the cache: (prompts, heads, entries, head width).
        values: values of the cache, in the same shape.
        mask: 0 or -inf, added to the scores: (prompts, 1, new, entries).
    """
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.contiguous().transpose(2, 3)
    return scores.add_(mask).softmax(-1) @ values


class PackedLinear(nn.Module):
    """A frozen linear layer that stores only packed copies of its weight."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, differentiable: bool) -> None:
        """Pack a frozen linear layer.

        Args:
            weight: W: (out, in).
            bias: b: (out,).
            differentiable: whether the gradient of the input will be needed, which takes a second copy.
        """
        super().__init__()
        assert not weight.requires_grad, "only a frozen weight can be packed"
        self.bias = bias
        # Not parameters, so that nothing broadcasts, saves or converts them.
        self._packed = pack(weight)
        self._transposed = pack(weight.t()) if differentiable else None
        self.gelu = False
        """Whether the product applies GELU too, without another pass over the result; it is then not differentiable."""

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
    """Pack the frozen layers of `model` for fast products, in place, with or without adapters around them.

    Every `Conv1D` is packed and its plain weight freed, so the model can no longer be saved or converted. Without
    gradients, the activation becomes part of the product before it. Where torch cannot pack, nothing changes.

    Args:
        model: a GPT-2 that is frozen except for its adapter.
        differentiable: whether gradients will flow through the layers.
    """
    if not can_pack(model.dtype):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                if isinstance(parent, LoraConv1D):
                    parent.adds_in_place = True
                setattr(parent, name, PackedLinear(child.weight.t(), child.bias, differentiable=differentiable))
    del child  # the last of them
    for block in model.transformer.h:
        if not differentiable and isinstance(block.mlp.act, nn.GELU):  # as `gpt2.fuse_activation` left it
            block.mlp.c_fc.gelu = True
            block.mlp.act = nn.Identity()
    for parameter in model.parameters():
        # Loaded tensors are views of a memory-mapped file: keeping one would keep the whole file in memory.
        parameter.data = parameter.data.clone()
    return_freed_memory()


class PackedProjection:
    """The output projection with packed copies of its weight; the tied embedding keeps the plain one."""

    def __init__(self, weight: Tensor, *, differentiable: bool) -> None:
        """Pack `weight` (vocabulary, width), and if `differentiable` a second copy for the gradient."""
        self._packed = pack(weight)
        self._transposed = pack(weight.t()) if differentiable else None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Projection`; oneDNN's product allocates its own result."""
        return product(hidden, self._packed)

    def gradient(self, logits: Tensor) -> Tensor:
        """See `Projection`."""
        assert self._transposed is not None, "packed for decoding, which needs no gradient"
        return product(logits, self._transposed)


def projection(weight: Tensor, *, differentiable: bool) -> Projection:
    """Copy the frozen output projection into the layout of the fastest product.

    Args:
        weight: the projection, which is not changed: (vocabulary, width).
        differentiable: whether `Projection.gradient` will be called.
    """
    if can_pack(weight.dtype):
        return PackedProjection(weight, differentiable=differentiable)
    return PlainProjection(weight if differentiable else weight.detach().t().contiguous().t())


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits (labels, vocabulary) by a multiple of their softmax, in place.

    A few rows at a time, as allocating an fp32 buffer for all of them takes longer than computing them.

    Returns:
        The logarithm of the sum of the exponentials of each row's logits, and the sum of the row afterwards: both
        (labels, 1) fp32.
    """
    if not len(logits):
        return (empty := logits.new_empty(0, 1, dtype=torch.float32)), empty
    normalisers, totals = [], []
    for part in torch.split(logits, max(1, LOSS_LOGITS // logits.shape[1])):
        powers = part.float()
        maximum = powers.amax(-1, keepdim=True)
        total = powers.sub_(maximum).exp_().sum(-1, keepdim=True)
        part.copy_(powers)
        normalisers.append(maximum + total.log())
        totals.append(total)
        del powers  # before the next one is allocated
    return torch.cat(normalisers), torch.cat(totals)


def top_tokens(logits: Tensor, tokens: Tensor, banned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` most likely tokens of each row that are not banned.

    Args:
        logits: logits of the next token: (rows, vocabulary).
        tokens: tokens that may be banned, each any number of times: (rows, n).
        banned: whether they are: (rows, n).
        k: tokens to find per row, at most the vocabulary size.

    Returns:
        Log-probabilities (fp32) and token ids, best first: both (rows, k).
    """
    rows = max(1, SEARCH_LOGITS // logits.shape[1])
    columns = padded_vocabulary(logits.shape[1], k)
    buffers = logits.new_full((2, min(rows, len(logits)), columns), -torch.inf, dtype=torch.float32)
    values, found = ban_values(banned), []
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        piece = logits[part]
        found.append(top_tokens_of_rows(piece, tokens[part], values[part], k, buffers[:, : len(piece)]))
    return torch.cat([best for best, _ in found]), torch.cat([ids for _, ids in found])
