"""Triton kernels, where torch's operators take several passes over many values.

Those for logits have a program for each row, which reads it from memory once, and again from the cache. Measured on an
H100 with the 6,300 rows of a decoding step: 0.4 ms instead of 4.9.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_dist.model.kernels.common import BLOCK_SIZE, whole_blocks

WIDTH = 8192
"""Logits that a program holds at a time, which was the fastest of 1024 to 8192."""

WARPS = 16
"""Warps of a program, each of 32 threads."""

LOWEST = -1e30
"""A finite value below all logits, as the difference of two infinities is no number."""

PIECE = 1024
"""Elements that a program of `Drop` computes."""


@triton.jit
def _drop(
    x, drawn, limits, others, result, size, stride, limit_each: tl.constexpr, adds: tl.constexpr, piece: tl.constexpr
):
    adapter = tl.program_id(1).to(tl.int64)
    places = tl.program_id(0) * piece + tl.arange(0, piece)
    inside = places < size
    limit = tl.load(limits + adapter) if limit_each else limits
    integers = tl.load(drawn + adapter * stride + places, inside, 0)
    values = tl.load(x + adapter * size + places, inside, 0.0)
    kept = tl.where(integers >= limit, values, 0.0).to(tl.float32)
    if adds:
        kept += tl.load(others + adapter * size + places, inside, 0.0).to(tl.float32)
    tl.store(result + adapter * size + places, kept, inside)


class Drop(torch.autograd.Function):
    """See `common.drop`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drawn: Tensor, limits: int | Tensor) -> tuple[Tensor, Tensor]:
        """Drop elements of `x`."""
        ctx.drawn, ctx.limits = drawn, limits
        return x.view_as(x), _dropped(x, drawn, limits, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor, of_dropped: Tensor) -> tuple[Tensor, None, None]:
        """Drop the same elements of the second gradient, and add the first."""
        return _dropped(of_dropped, ctx.drawn, ctx.limits, of_x), None, None


def _dropped(x: Tensor, drawn: Tensor, limits: int | Tensor, others: Tensor | None) -> Tensor:
    """Drop elements of x (rows, features), and then add `others` of the same shape, if there are any."""
    adds, each = others is not None, isinstance(limits, Tensor)
    x, others = x.contiguous(), (x if others is None else others).contiguous()
    result, size = torch.empty_like(x), x.numel() // len(drawn)
    assert drawn[0].is_contiguous()
    grid = triton.cdiv(size, PIECE), len(drawn)
    _drop[grid](x, drawn, limits, others, result, size, drawn.stride(0), each, adds, PIECE)
    return result


@triton.jit
def _peak_and_total(row, count: tl.constexpr, width: tl.constexpr, lowest: tl.constexpr):
    """Compute the maximum of the `count` values at `row`, and the sum of exp(value - maximum)."""
    places = tl.arange(0, width)
    peaks = tl.full((width,), lowest, tl.float32)
    totals = tl.zeros((width,), tl.float32)
    for first in range(0, count, width):
        values = tl.load(row + first + places, first + places < count, -float("inf")).to(tl.float32)
        higher = tl.maximum(peaks, values)
        totals = totals * tl.exp(peaks - higher) + tl.exp(values - higher)
        peaks = higher
    peak = tl.max(peaks, 0)
    return peak, tl.sum(totals * tl.exp(peaks - peak), 0)


@triton.jit
def _exponentiate(logits, stride, normalisers, totals, count: tl.constexpr, width: tl.constexpr, lowest: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * stride
    peak, total = _peak_and_total(row, count, width, lowest)
    tl.store(normalisers + number, peak + tl.log(total))
    tl.store(totals + number, total)
    places = tl.arange(0, width)
    for first in range(0, count, width):
        inside = first + places < count
        values = tl.load(row + first + places, inside, 0.0).to(tl.float32)
        tl.store(row + first + places, tl.exp(values - peak), inside)


@triton.jit
def _ban(
    logits,
    tokens,
    banned,
    peaks,
    totals,
    maxima,
    bans,
    vocabulary: tl.constexpr,
    columns: tl.constexpr,
    most_bans: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    lowest: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * columns
    peak, total = _peak_and_total(row, vocabulary, width, lowest)
    tl.store(peaks + number, peak)
    tl.store(totals + number, total)
    own = tl.arange(0, most_bans)
    token = tl.load(tokens + number * bans + own, own < bans, 0)
    is_banned = tl.load(banned + number * bans + own, own < bans, 0) != 0
    padding = vocabulary + tl.arange(0, block)
    tl.debug_barrier()  # the whole row is read before any of it is changed
    tl.store(row + token, -float("inf"), is_banned)
    tl.store(row + padding, -float("inf"), padding < columns)
    tl.debug_barrier()
    places, blocks = tl.arange(0, width), tl.arange(0, width // block)
    for first in range(0, columns, width):
        values = tl.load(row + first + places, first + places < columns, -float("inf")).to(tl.float32)
        highest = tl.max(tl.reshape(values, (width // block, block)), 1)
        place = first // block + blocks
        tl.store(maxima + number * (columns // block) + place, highest, place < columns // block)


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `cpu.exponentiate`."""
    normalisers, totals = torch.empty(2, len(logits), 1, device=logits.device).unbind()
    _exponentiate[(len(logits),)](
        logits, logits.stride(0), normalisers, totals, logits.shape[1], WIDTH, LOWEST, num_warps=WARPS
    )
    return normalisers, totals


def ban(logits: Tensor, vocabulary: int, tokens: Tensor, banned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Set banned tokens and padding to -inf, in place.

    Args:
        logits: logits of the next token: (rows, columns), whole blocks.
        vocabulary: vocabulary size; further columns are padding, less than a block.
        tokens: tokens that may be banned, each any number of times: (rows, n).
        banned: whether they are: (rows, n).

    Returns:
        Of the logits before: their maximum m, and the sum of exp(logit - m) over the vocabulary: both (rows, 1) fp32.
        And the maximum of each block of the result: (rows, columns / `BLOCK_SIZE`) fp32.
    """
    rows, columns = logits.shape
    assert logits.is_contiguous()
    assert columns == whole_blocks(vocabulary)
    peaks, totals = torch.empty(2, rows, 1, device=logits.device).unbind()
    maxima = torch.empty(rows, columns // BLOCK_SIZE, device=logits.device)
    _ban[(rows,)](
        logits,
        tokens.contiguous(),
        banned.contiguous(),
        peaks,
        totals,
        maxima,
        tokens.shape[1],
        vocabulary,
        columns,
        triton.next_power_of_2(max(1, tokens.shape[1])),
        BLOCK_SIZE,
        WIDTH,
        LOWEST,
        num_warps=WARPS,
    )
    return peaks, totals, maxima
