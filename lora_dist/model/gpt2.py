"""The forward pass of GPT-2's body over tokens laid end to end, without padding; training and decoding share it.

Everything but attention works on single tokens, so rows of different lengths need no padding there. The layers are
transformers' own modules (so ZeRO-3 finds its hooks, and LoRA is injected in them); the order of the calls is ours.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Model


def run_body(
    body: GPT2Model,
    tokens: Tensor,
    positions: Tensor,
    attend: Callable[[int, Tensor], Tensor],
    wanted: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """The last hidden state of the `wanted` tokens: (wanted, width).

    Args:
        body: GPT-2 without its output projection.
        tokens: ids: (tokens,).
        positions: which position each has in its text: (tokens,).
        attend: mixes queries, keys and values (tokens, 3 width) of a layer, given by number, to (tokens, width).
        wanted: indices of the tokens whose result is needed; the last layer computes no more. None is all of them.
        recompute: keep only the input of each layer for backward, which then computes the layer again.
    """

    def layer(number: int, hidden: Tensor) -> Tensor:
        block = body.h[number]
        mixed = attend(number, block.attn.c_attn(block.ln_1(hidden)))
        if wanted is not None and number == len(body.h) - 1:
            back = inverse(wanted, len(hidden))
            hidden, mixed = select(hidden, wanted, back), select(mixed, wanted, back)
        hidden = hidden + block.attn.resid_dropout(block.attn.c_proj(mixed))
        result: Tensor = hidden + block.mlp(block.ln_2(hidden))
        return result

    hidden = body.drop(body.wte(tokens) + body.wpe(positions))
    for number in range(len(body.h)):
        # Not reentrant: the first layer's input needs no gradient, which the reentrant kind takes as a reason for none.
        hidden = checkpoint(layer, number, hidden, use_reentrant=False) if recompute else layer(number, hidden)
    last: Tensor = body.ln_f(hidden)
    return last


def visible_to_sharers(sharers: Tensor) -> Tensor:
    """Which places of a row each may look at, where references share an MR: (rows, length, length), True to look.

    Args:
        sharers: the reference that each place belongs to, 0 for the MR: (rows, length).
    """
    own, other = sharers[:, :, None], sharers[:, None, :]
    return ((other == own) | (other == 0)).tril()


def causal_attention(fused: Tensor, heads: int, dropout: float, visible: Tensor | None = None) -> Tensor:
    """Attention of each token to itself and those before it in its row: (rows, length, width).

    Args:
        fused: queries, keys and values: (rows, length, 3 width).
        heads: attention heads.
        dropout: probability of dropping an attention weight.
        visible: which places each may look at, no more than those up to its own: (rows, length, length); None is all
            of them.
    """
    rows, length, _ = fused.shape
    query, key, value = fused.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    if fused.device.type != "cpu":
        mask = None if visible is None else visible[:, None]
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None)
    else:
        # torch's fused kernel takes five times as long as this on a CPU, forward and backward at E2E's lengths.
        scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]))
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if visible is None else ~visible[:, None]
        bias = torch.zeros(hidden.shape, dtype=scores.dtype).masked_fill_(hidden, -torch.inf)
        weights = (scores + bias).softmax(-1)
        mixed = (F.dropout(weights, dropout) if dropout else weights) @ value
    return mixed.transpose(1, 2).reshape(rows, length, -1)


def inverse(indices: Tensor, rows: int) -> Tensor:
    """Where in `indices` (n,) each of `rows` rows stands, or n where it does not: (rows,)."""
    count = len(indices)
    return indices.new_full((rows,), count).scatter_(0, indices, torch.arange(count, device=indices.device))


def select(values: Tensor, indices: Tensor, back: Tensor) -> Tensor:
    """Rows `indices` (n,) of `values` (rows, width), no row twice: (n, width).

    Args:
        values: rows to choose from.
        indices: the rows chosen.
        back: see `inverse`.
    """
    chosen: Tensor = _Select.apply(values, indices, back)  # type: ignore[no-untyped-call]
    return chosen


def spread(values: Tensor, indices: Tensor, back: Tensor) -> Tensor:
    """The inverse of `select`: zeros (rows, width) with `values` (n, width) at rows `indices` (n,)."""
    spreaded: Tensor = _Spread.apply(values, indices, back)  # type: ignore[no-untyped-call]
    return spreaded


class _Select(torch.autograd.Function):
    """As no row comes twice, its gradient is a choice of rows too: no sum in any order, none that needs atomics.

    A GPU that has to be deterministic would sort the indices of each `index_copy_`.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return values.index_select(0, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return _rows_or_zeros(gradient, back), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        return _rows_or_zeros(values, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return gradient.index_select(0, indices), None, None


def _rows_or_zeros(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of `values` (n, width), and zeros for row n."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])]).index_select(0, rows)


def fuse_activation(body: GPT2Model) -> None:
    """Let GELU's tanh form run as one kernel, in place of the six of transformers' `gelu_new`; the same function."""
    for block in body.h:
        if type(block.mlp.act).__name__ == "NewGELUActivation":
            block.mlp.act = nn.GELU(approximate="tanh").train(body.training)
