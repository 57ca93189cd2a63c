"""Private interfaces of torch that `model/` needs; tests/model/test_compat.py names each.

They are oneDNN's prepacked products: torch's compiler uses these operators, but there is no public interface to them.
"""

import torch
from torch import Tensor

from lora_dist.distributed.compat import cpu_has_bf16


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether weights of `dtype` on a CPU can be packed for oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_has_bf16())


def pack(weight: Tensor) -> Tensor:
    """Pack a copy of weight (out, in), which only `product` can read."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def product(x: Tensor, packed: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Compute x W^T + b, or GELU's tanh form of it: (..., out).

    Args:
        x: input: (..., in).
        packed: W (out, in), from `pack`.
        bias: b: (out,).
        gelu: whether to apply GELU to the result.
    """
    activation, form = ("gelu", "tanh") if gelu else ("none", "")
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], form)
    return result
