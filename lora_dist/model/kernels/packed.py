"""Frozen weights packed for oneDNN's products on CPU cores.

oneDNN multiplies with a blocked ("packed") copy of a weight. Given a plain matrix, it makes this copy again in each
product, which in bf16 is a tenth of the time with 464 rows and a third with 32; a frozen weight needs it only once. In
fp32, plain products are left to MKL, which on AMD processors takes more than twice as long.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_dist.model.compat import can_pack, pack, product
from lora_dist.model.kernels.common import PlainProjection, Projection
from lora_dist.model.kernels.glibc import return_freed_memory
from lora_dist.model.lora import LoraConv1D


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
        self.columns = len(weight)

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
