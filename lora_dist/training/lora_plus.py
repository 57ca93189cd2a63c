"""AdamW for the adapter, with LoRA+'s learning rate of B (Hayou et al. 2024, "LoRA+", section 4)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_dist.model.flat_adapter import FlatAdapter


def adamw(
    groups: Sequence[dict[str, Any]], adapter: FlatAdapter, *, lora_plus_ratio: float, rank: int
) -> torch.optim.AdamW:
    """Build the optimizer.

    Args:
        groups: parameters and weight decay of each adapter, of one only with a ratio other than 1.
        adapter: what it trains.
        lora_plus_ratio: see `TrainSettings`.
        rank: this rank, whose partition of the adapter it gets under ZeRO.
    """
    if lora_plus_ratio == 1:
        return torch.optim.AdamW(list(groups), lr=0.0, fused=True)
    (group,) = groups
    rates = adapter.rates(lora_plus_ratio)
    return LoraPlusAdamW(adapter.values, rates, rank, lr=0.0, weight_decay=group["weight_decay"], fused=True)


class LoraPlusAdamW(torch.optim.AdamW):
    """AdamW with a learning rate for each element of its one parameter.

    AdamW's change of an element, weight decay included, is proportional to its learning rate. So the step is AdamW's,
    and then each change is multiplied by the element's rate.
    """

    def __init__(self, values: torch.nn.Parameter, rates: Tensor, rank: int, **common: Any) -> None:
        """Set up AdamW for `values` (1, elements).

        Args:
            values: the parameter. ZeRO replaces it by one of its equal partitions, the last of which is padded.
            rates: factors of the learning rate: (elements,).
            rank: number of the partition.
            common: AdamW's other arguments.
        """
        super().__init__([values], **common)
        self._rates, self._rank = rates, rank

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make one step; see `torch.optim.AdamW.step`."""
        (values,) = self.param_groups[0]["params"]
        before = values.detach().clone()
        loss = super().step(closure)
        size = values.numel()
        if len(self._rates) != size:  # in the first step under ZeRO
            padded = torch.nn.functional.pad(self._rates, (0, size * (self._rank + 1)), value=1.0)
            self._rates = padded[size * self._rank : size * (self._rank + 1)]
        self._rates = self._rates.to(values.device)
        values.copy_(torch.lerp(before, values, self._rates))
        return loss
