"""The forward pass of GPT-2's body over tokens laid end to end, without padding; training and decoding share it.

Everything but attention works on single tokens, so rows of different lengths need no padding there. The layers are
transformers' own modules (so ZeRO-3 finds its hooks, and LoRA is injected in them); the order of the calls is ours.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Model
from transformers.activations import NewGELUActivation

from lora_dist.model.kernels.select import Kernels


def run_body(
    body: GPT2Model,
    tokens: Tensor,
    positions: Tensor,
    attend: Callable[[int, Tensor], Tensor],
    output_index: Tensor | None = None,
    *,
    gradient_checkpointing: bool = False,
) -> Tensor:
    """Compute the last hidden states: (outputs, width).

    Args:
        body: GPT-2 without its output projection.
        tokens: token ids: (tokens,).
        positions: position of each token in its text: (tokens,).
        attend: maps queries, keys and values (tokens, 3 width) of a layer, given by its number, to (tokens, width).
        output_index: indices of the tokens whose result is needed, (outputs,); the last layer computes no others after
            its attention. None is all of them.
        gradient_checkpointing: keep only the input of each layer for backward, which then computes the layer again.
    """

    def layer(number: int, hidden: Tensor) -> Tensor:
        block = body.h[number]
        mixed = attend(number, block.attn.c_attn(block.ln_1(hidden)))
        if output_index is not None and number == len(body.h) - 1:
            inverse = inverse_index(output_index, len(hidden))
            hidden, mixed = take_rows(hidden, output_index, inverse), take_rows(mixed, output_index, inverse)
        hidden = hidden + block.attn.resid_dropout(block.attn.c_proj(mixed))
        result: Tensor = hidden + block.mlp(block.ln_2(hidden))
        return result

    hidden = body.drop(body.wte(tokens) + body.wpe(positions))
    for number in range(len(body.h)):
        # Not reentrant: the first layer's input needs no gradient, which the reentrant kind takes as a reason for none.
        again = gradient_checkpointing
        hidden = checkpoint(layer, number, hidden, use_reentrant=False) if again else layer(number, hidden)
    last: Tensor = body.ln_f(hidden)
    return last


def visible_in_segments(segments: Tensor) -> Tensor:
    """Which tokens of a row each may attend to, where references share an MR: (rows, length, length), True is visible.

    Args:
        segments: the reference that each token belongs to, 0 for the MR: (rows, length).
    """
    own, other = segments[:, :, None], segments[:, None, :]
    return ((other == own) | (other == 0)).tril()


def causal_attention(
    kernels: Kernels, fused: Tensor, num_heads: int, dropout: float, visible: Tensor | None = None
) -> Tensor:
    """Attention of each token to itself and those before it in its row: (rows, length, width).

    Args:
        kernels: of the device.
        fused: queries, keys and values: (rows, length, 3 width).
        num_heads: attention heads.
        dropout: probability of dropping an attention weight.
        visible: which tokens each may attend to, none after it: (rows, length, length); None is all of them.
    """
    rows, length, _ = fused.shape
    query, key, value = fused.view(rows, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    return kernels.attention(query, key, value, visible, dropout).transpose(1, 2).reshape(rows, length, -1)


def inverse_index(index: Tensor, rows: int) -> Tensor:
    """Where in `index` (n,) each of `rows` rows occurs, or n where it does not: (rows,)."""
    count = len(index)
    return index.new_full((rows,), count).scatter_(0, index, torch.arange(count, device=index.device))


def take_rows(values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Rows `index` (n,) of `values` (rows, width), no row twice: (n, width).

    Args:
        values: rows to choose from.
        index: the rows chosen.
        inverse: see `inverse_index`.
    """
    taken: Tensor = _TakeRows.apply(values, index, inverse)  # type: ignore[no-untyped-call]
    return taken


def pad_rows(values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """The inverse of `take_rows`: zeros (rows, width) with `values` (n, width) at rows `index` (n,)."""
    padded: Tensor = _PadRows.apply(values, index, inverse)  # type: ignore[no-untyped-call]
    return padded


class _TakeRows(torch.autograd.Function):
    """As no row occurs twice, its gradient is a choice of rows too: no sum in any order, none that needs atomics.

    A GPU that has to be deterministic would sort the indices of each `index_copy_`.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return values.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _rows_or_zeros(gradient, inverse), None, None


class _PadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return _rows_or_zeros(values, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


def _rows_or_zeros(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of `values` (n, width), and zeros for row n."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])]).index_select(0, rows)


def fuse_activation(body: GPT2Model) -> None:
    """Replace transformers' `gelu_new` of six kernels by GELU's tanh form in one kernel; the same function."""
    for block in body.h:
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = nn.GELU(approximate="tanh").train(body.training)
