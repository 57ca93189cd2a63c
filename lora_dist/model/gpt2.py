"""The forward pass of GPT-2's body over concatenated tokens; training and decoding share it.

Everything but attention works on single tokens, so rows of different lengths need no padding there. The layers are
transformers' own modules, so that ZeRO-3's hooks and LoRA apply to them; only the order of the calls is ours.
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
    take_outputs: Callable[[Tensor], Tensor] | None = None,
    *,
    gradient_checkpointing: bool = False,
) -> Tensor:
    """Compute the last hidden states: (outputs, width).

    Args:
        body: GPT-2 without its output projection.
        tokens: token ids: (tokens,).
        positions: position of each token in its text: (tokens,).
        attend: attention of a layer, given its number and the fused queries, keys and values (tokens, 3 width):
            (tokens, width).
        take_outputs: selects the tokens whose result is needed, from (tokens, width) to (outputs, width). The last
            layer computes no others after its attention. None keeps all of them.
        gradient_checkpointing: keep only each layer's input for backward, which then recomputes the layer.
    """

    def layer(number: int, hidden: Tensor) -> Tensor:
        block = body.h[number]
        mixed = attend(number, block.attn.c_attn(block.ln_1(hidden)))
        if take_outputs is not None and number == len(body.h) - 1:
            hidden, mixed = take_outputs(hidden), take_outputs(mixed)
        hidden = hidden + block.attn.resid_dropout(block.attn.c_proj(mixed))
        result: Tensor = hidden + block.mlp(block.ln_2(hidden))
        return result

    hidden = body.drop(body.wte(tokens) + body.wpe(positions))
    for number in range(len(body.h)):
        # Not reentrant: the first layer's input requires no gradient, and the reentrant kind would then compute none.
        again = gradient_checkpointing
        hidden = checkpoint(layer, number, hidden, use_reentrant=False) if again else layer(number, hidden)
    last: Tensor = body.ln_f(hidden)
    return last


def visible_in_segments(segments: Tensor) -> Tensor:
    """Compute the attention mask of rows in which references share an MR: (rows, length, length), True is visible.

    A token attends to the MR and to its own reference, up to itself.

    Args:
        segments: the reference that each token belongs to, 0 for the MR: (rows, length).
    """
    own, other = segments[:, :, None], segments[:, None, :]
    return ((other == own) | (other == 0)).tril()


def causal_attention(
    kernels: Kernels, fused: Tensor, num_heads: int, dropout: float, visible: Tensor | None = None
) -> Tensor:
    """Compute causal self-attention within each row: (rows, length, width).

    Args:
        kernels: kernels of the device.
        fused: queries, keys and values: (rows, length, 3 width).
        num_heads: attention heads.
        dropout: probability of dropping an attention weight.
        visible: a causal mask, True is visible: (rows, length, length). None shows all tokens up to itself.
    """
    rows, length, _ = fused.shape
    query, key, value = _SplitHeads.apply(fused.view(rows, length, 3, num_heads, -1))  # type: ignore[no-untyped-call]
    return kernels.attention(query, key, value, visible, dropout).transpose(1, 2).reshape(rows, length, -1)


class _SplitHeads(torch.autograd.Function):
    """Split fused queries, keys and values; autograd's own backward would stack the gradients in another order, and
    copy them once more into this one.
    """

    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> tuple[Tensor, ...]:
        """View `fused` (rows, length, 3, heads, head width) as three tensors (rows, heads, length, head width)."""
        return fused.permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.stack([gradient.transpose(1, 2) for gradient in gradients], dim=2)


class RowIndex:
    """Distinct rows of a matrix, in any order, and the inverse of this index, which gradients need."""

    def __init__(self, index: Tensor, inverse: Tensor) -> None:
        """Prepare the inverse, once for all uses.

        Args:
            index: the rows, none twice: (n,).
            inverse: the place of each row of the matrix in `index`, -1 for an absent row: (rows,).
        """
        self.index = index
        self.inverse = inverse.clamp(min=0)
        """The inverse with an arbitrary place for absent rows: (rows,)."""
        self.absent = (inverse < 0)[:, None]
        """Whether a row is not in `index`: (rows, 1)."""


def take_rows(values: Tensor, rows: RowIndex) -> Tensor:
    """Gather the n rows of an index from a matrix (rows, width): (n, width)."""
    taken: Tensor = _TakeRows.apply(values, rows)  # type: ignore[no-untyped-call]
    return taken


def pad_rows(values: Tensor, rows: RowIndex) -> Tensor:
    """Invert `take_rows`: put `values` (n, width) at the rows of an index in a matrix (rows, width).

    Absent rows are copies of one of the others, which no result and no gradient may depend on.
    """
    padded: Tensor = _PadRows.apply(values, rows)  # type: ignore[no-untyped-call]
    return padded


class _TakeRows(torch.autograd.Function):
    """Gather rows, with a backward pass that gathers too, as no row occurs twice.

    With a scatter (`index_copy_`), a GPU in deterministic mode would sort the indices each time.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: RowIndex) -> Tensor:
        ctx.rows = rows
        return values.index_select(0, rows.index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.rows.inverse).masked_fill_(ctx.rows.absent, 0.0), None


class _PadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: RowIndex) -> Tensor:
        ctx.rows = rows
        return values.index_select(0, rows.inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.rows.index), None


def fuse_activation(body: GPT2Model) -> None:
    """Replace transformers' `gelu_new` (six kernels) by torch's GELU in its tanh form (one); the same function."""
    for block in body.h:
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = nn.GELU(approximate="tanh").train(body.training)
