"""Pairs for some parts of a fused layer (q, k, v) as one pair with zero blocks, which PEFT computes too."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_dist.errors import UserError


def join_blocks(b: Tensor, parts: Sequence[int]) -> Tensor:
    """Join the B of several pairs into the B of one pair of their total rank, whose A is theirs stacked.

    Args:
        b: the B of each pair, stacked: (pairs width, r).
        parts: the part of the layer, one of three, that each pair adapts: (pairs,). None returns `b` itself.

    Returns:
        One block per pair, zeros elsewhere: (3 width, pairs r).
    """
    if not parts:
        return b
    (rows, rank), pairs = b.shape, len(parts)
    joined = b.new_zeros(3, rows // pairs, pairs, rank)
    for pair, part in enumerate(parts):
        joined[part, :, pair] = b[pair * (rows // pairs) : (pair + 1) * (rows // pairs)]
    return joined.view(3 * rows // pairs, pairs * rank)


def split_blocks(joined: Tensor, parts: Sequence[int]) -> Tensor:
    """Invert `join_blocks`: (pairs width, r) from (3 width, pairs r).

    Raises:
        UserError: if `joined` is not zero outside the blocks.
    """
    if not parts:
        return joined
    if len(joined) % 3 or joined.shape[1] % len(parts):
        raise UserError(f"the adapter does not fit the model: a B is {tuple(joined.shape)}: check --lora.targets")
    blocks = joined.view(3, len(joined) // 3, len(parts), -1)
    b = torch.cat([blocks[part, :, pair] for pair, part in enumerate(parts)])
    if not torch.equal(join_blocks(b, parts), joined):
        raise UserError("the adapter does not fit the model: it adapts other parts of c_attn: check --lora.targets")
    return b
