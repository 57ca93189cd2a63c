"""Weight-decomposed LoRA (Liu et al. 2024, "DoRA"): the adapted weight with columns of trained norms.

A layer computes `x W' + b` with W' = m / |W + s (B A)^T| (W + s (B A)^T), column by column (equation 5).
"""

import torch
from torch import Tensor


@torch.no_grad()
def column_norms(squares: Tensor, projected: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Compute |W + s (B A)^T| of each column, a constant for the gradient (section 4.3): (out,) fp32.

    Expanded into |W|^2 + 2 s B (A W) + s^2 B (A A^T) B^T, so that no matrix has the shape of W.

    Args:
        squares: |W|^2 of each column: (out,) fp32.
        projected: A W: (r, out).
        a: A: (r, in) fp32.
        b: B: (out, r) fp32.
        scaling: s.
    """
    changes = 2 * scaling * projected.float().t() + scaling**2 * (b @ (a @ a.t()))
    return (squares + (changes * b).sum(1)).sqrt()


def scale_columns(out: Tensor, frozen: Tensor, product: Tensor, factors: Tensor) -> Tensor:
    """Compute the result of a layer as PEFT does: dropout applies to all that is scaled.

    The factors stay near 1, and their difference from it is what bf16 can represent.

    Args:
        out: x W + b: (..., out).
        frozen: dropout(x) W: (..., out).
        product: s dropout(x) A^T B^T: (..., out).
        factors: m / |W + s (B A)^T|: (out,) fp32.
    """
    return out + (factors - 1).to(out.dtype) * frozen + factors.to(out.dtype) * product
