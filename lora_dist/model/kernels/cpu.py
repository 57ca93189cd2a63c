"""Frozen weights as oneDNN multiplies with them, for products on a CPU.

oneDNN computes with a blocked copy of a weight, and makes it anew in each product that is given a plain matrix: in bf16
a tenth of a product with 464 rows, a third of one with 32. A frozen weight needs it only once. Products in fp32 go to
MKL otherwise, which on AMD's processors takes more than twice as long. The operators are those of torch's own compiler.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_dist.distributed.device import give_back_freed_memory


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of `dtype` on `device` can be packed."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Tensor) -> Tensor:
    """A packed copy of weight (out, in), which `product` alone can read."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def product(x: Tensor, packed: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """X W^T + b of x (..., in), a packed W (out, in) and bias (out,), or GELU's tanh form of that: (..., out)."""
    after, form = ("gelu", "tanh") if gelu else ("none", "")
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], form)
    return result


class PackedLinear(nn.Module):
    """A frozen linear layer that holds its weight in packed copies alone."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, differentiable: bool) -> None:
        """Take a weight (out, in) and bias (out,); if `differentiable`, a gradient can go through to the input."""
        super().__init__()
        assert not weight.requires_grad, "only what is frozen can be packed"
        self.bias = bias
        # No parameters: nobody is to send, save or convert them.
        self._packed = pack(weight)
        self._transposed = pack(weight.t()) if differentiable else None
        self.gelu = False
        """Whether GELU follows, which then takes no pass over the result; such a layer is not differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        if self._transposed is None:
            return product(x, self._packed, self.bias, gelu=self.gelu)
        result: Tensor = _Product.apply(x, self._packed, self._transposed, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return product(x, packed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return product(gradient, ctx.transposed), None, None, None


def pack_layers(model: GPT2LMHeadModel, *, differentiable: bool) -> None:
    """Pack all `Conv1D` of `model` in place, adapters around them or not, and give their memory back.

    Without a gradient the activation becomes part of the product before it.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, PackedLinear(child.weight.t(), child.bias, differentiable))
    del child  # the last of them
    for block in model.transformer.h:
        if not differentiable and isinstance(block.mlp.act, nn.GELU):  # as `gpt2.fuse_activation` left it
            block.mlp.c_fc.gelu = True
            block.mlp.act = nn.Identity()
    for parameter in model.parameters():
        # Loaded tensors are pages of a file, of which one that is held holds them all in memory.
        parameter.data = parameter.data.clone()
    give_back_freed_memory()
