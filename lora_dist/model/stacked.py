"""The adapters of several runs in one layer: each maps its own rows, while the frozen layer maps all of them at once.

A GPU computes the low-rank products of all adapters as one batched product, of equally many rows each. A CPU computes
one after the other, so that the rows of an adapter need no padding beyond their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_dist.model.masks import keep_limit, keep_mask


class StackedAdapters:
    """What the adapters of several runs have in all layers: their scaling, their dropout and its random numbers."""

    def __init__(
        self, scalings: Sequence[float], dropouts: Sequence[float], device: torch.device, *, batched: bool
    ) -> None:
        """Set up the adapters.

        Args:
            scalings: factor of each adapter's product, see `config.LoraSettings.scaling`: (adapters,).
            dropouts: dropout probability of each: (adapters,).
            device: where they compute.
            batched: whether to compute all products of a layer at once; all adapters then have equally many rows.
        """
        self.dropouts, self.batched = tuple(dropouts), batched
        self.generators = [torch.Generator(device) for _ in dropouts]
        """One for each adapter, so that its masks are those of its run alone."""
        self.limits = _one_or_tensor([keep_limit(p) for p in dropouts], torch.int16, device)
        """Of the random integers, see `masks.keep_limit`."""
        trained = [scaling / (1 - p) for scaling, p in zip(scalings, dropouts, strict=True)]
        self._scales = {False: list(scalings), True: trained}
        self._batched_scales = {
            training: _one_or_tensor(scales, torch.float32, device) for training, scales in self._scales.items()
        }

    @property
    def drops(self) -> bool:
        """Whether any of the adapters has dropout."""
        return any(self.dropouts)

    def mask(self, sizes: Sequence[int], like: Tensor) -> Tensor:
        """Draw the dropout mask of one layer, for the rows of each adapter from its own generator.

        Args:
            sizes: rows of each adapter: (adapters,).
            like: the layer's input: (rows, in).
        """
        parts = [
            keep_mask((size, like.shape[1]), p, like.dtype, like.device, generator)
            if p
            else like.new_ones(size, like.shape[1])
            for size, p, generator in zip(sizes, self.dropouts, self.generators, strict=True)
        ]
        return torch.cat(parts)

    def add(
        self, out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], *, training: bool, in_place: bool
    ) -> Tensor:
        """Add each adapter's product to the rows of `out` that are its own: (rows, out).

        Args:
            out: the frozen layer's result: (rows, out).
            x: the layer's input, after dropout: (rows, in).
            a: A of each adapter: (adapters, r, in).
            b: B of each adapter: (adapters, out, r).
            sizes: rows of each adapter: (adapters,).
            training: whether `x` lacks what dropout drops.
            in_place: whether `out` may be changed.
        """
        scales = self._batched_scales[training] if self.batched else self._scales[training]
        product = _BatchedProducts if self.batched else _SeparateProducts
        result: Tensor = product.apply(out, x, a, b, tuple(sizes), scales, in_place)  # type: ignore[no-untyped-call]
        return result


def _one_or_tensor(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Return the value that all adapters share, or a tensor of all: (adapters, 1, 1)."""
    return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


class _BatchedProducts(torch.autograd.Function):
    """One batched product for all adapters, with its gradients; autograd's own would copy `out` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        sizes: tuple[int, ...],
        scale: float | Tensor,
        in_place: bool,
    ) -> Tensor:
        assert len(set(sizes)) == 1, "a batched product needs equally many rows of each adapter"
        stacked = x.view(len(sizes), sizes[0], -1)
        hidden = _scaled_product(stacked, a.transpose(1, 2), scale)
        ctx.save_for_backward(stacked, hidden, a, b)
        ctx.scale = scale
        if in_place:
            ctx.mark_dirty(out)
            out.view(len(sizes), sizes[0], -1).baddbmm_(hidden, b.transpose(1, 2))
            return out
        return torch.baddbmm(out.view(len(sizes), sizes[0], -1), hidden, b.transpose(1, 2)).view(out.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        stacked = gradient.reshape(*x.shape[:2], -1)
        inner = _scaled_product(stacked, b, ctx.scale)
        of_x = torch.bmm(inner, a).flatten(0, 1) if ctx.needs_input_grad[1] else None
        of_a, of_b = torch.bmm(inner.transpose(1, 2), x), torch.bmm(stacked.transpose(1, 2), hidden)
        return gradient, of_x, of_a, of_b, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scale: float | Tensor) -> Tensor:
    """Compute the batched product of (n, i, j) and (n, j, k) times a factor, of all or of each (n, 1, 1): (n, i, k)."""
    if isinstance(scale, Tensor):
        return torch.bmm(left, right).mul_(scale)
    result = left.new_empty(*left.shape[:2], right.shape[2])
    return result.baddbmm_(left, right, beta=0, alpha=scale)


class _SeparateProducts(torch.autograd.Function):
    """The products of one adapter after the other, into the rows of one result."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        sizes: tuple[int, ...],
        scales: Sequence[float],
        in_place: bool,
    ) -> Tensor:
        result = out if in_place else torch.empty_like(out)
        hidden = x.new_empty(len(x), a.shape[1])
        parts = (torch.split(tensor, list(sizes)) for tensor in (out, result, x, hidden))
        for own_out, own, own_x, inner, own_a, own_b, scale in zip(*parts, a, b, scales, strict=True):
            torch.mm(own_x, own_a.t(), out=inner)
            inner.mul_(scale)
            torch.addmm(own_out, inner, own_b.t(), out=own)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.sizes, ctx.scales = sizes, scales
        if in_place:
            ctx.mark_dirty(out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        of_x, of_a, of_b = torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)
        flows = ctx.needs_input_grad[1]
        parts = (torch.split(tensor, ctx.sizes) for tensor in (gradient, x, hidden, of_x))
        for own, own_x, inner, own_of_x, *matrices, scale in zip(*parts, a, b, of_a, of_b, ctx.scales, strict=True):
            own_a, own_b, own_of_a, own_of_b = matrices
            of_inner = torch.mm(own, own_b).mul_(scale)
            if flows:
                torch.mm(of_inner, own_a, out=own_of_x)
            torch.mm(of_inner.t(), own_x, out=own_of_a)
            torch.mm(own.t(), inner, out=own_of_b)
        return gradient, of_x if flows else None, of_a, of_b, None, None, None
