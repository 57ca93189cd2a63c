"""The trainable matrices of a model as one parameter, for training.

So a step has one cast to the compute precision, one gradient, one reduction over the ranks and one AdamW, instead of
one for each of up to 192 matrices.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_dist.model import lora


class FlatAdapter(nn.Module):
    """Owns the matrices of all wrapped layers of a model, which get them anew for each forward pass."""

    def __init__(self, model: nn.Module) -> None:
        """Move the matrices of `model`, which has no trainable parameters afterwards, into one parameter."""
        super().__init__()
        named = lora.parameters(model)
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        self._sizes = [parameter.numel() for parameter in named.values()]
        self._layers = [layer for _, layer in lora.layers(model)]
        self.values = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in named.values()]))
        """All elements of A (r, in), B (out, r) and DoRA's norms (out,) of each layer, in the model's order:
        (elements,) fp32."""
        for layer in self._layers:
            for attribute in layer.trained.values():
                delattr(layer, attribute)
        self.assign(self.values.detach())

    @property
    def layers(self) -> list[lora.LoraConv1D]:
        """The wrapped layers, in the model's order."""
        return self._layers

    @property
    def names(self) -> list[str]:
        """PEFT's names of the matrices, in the model's order."""
        return list(self._shapes)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return a copy of the elements in `dtype`, for `assign`: (elements,).

        With DoRA in fp32, as bf16 would change the norms, and so the whole frozen weight, by up to 0.4 %. Under ZeRO-3,
        only the copy is whole after this call.
        """
        return self.values.to(torch.float32 if self._layers[0].dora else dtype, copy=True)

    def assign(self, elements: Tensor) -> None:
        """Give each layer its A and B (and norms) as views of `elements` (elements,)."""
        parts = iter(self.split(elements).values())
        for layer in self._layers:
            for attribute in layer.trained.values():
                setattr(layer, attribute, next(parts))

    def split(self, elements: Tensor) -> dict[str, Tensor]:
        """Split a tensor that is laid out as `values` is, (elements,), into the matrices by name."""
        parts = zip(self._shapes.items(), torch.split(elements, self._sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def rates(self, ratio: float) -> Tensor:
        """Return LoRA+'s factor of each element's learning rate, 1 for A and `ratio` for all else: (elements,)."""
        by_name = {name: 1.0 if "lora_A" in name else ratio for name in self._shapes}
        return self.join({name: torch.full(self._shapes[name], rate) for name, rate in by_name.items()})

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Invert `split`: (elements,)."""
        return torch.cat([named[name].flatten() for name in self._shapes])
