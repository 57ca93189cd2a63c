"""The trainable matrices of a model as one parameter, for training: of one adapter, or of several over one base.

So a step has one cast to the compute precision, one gradient, one reduction over the ranks and one AdamW, instead of
one for each of up to 192 matrices.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_dist.config import LoraSettings
from lora_dist.model import lora
from lora_dist.model.stacked import StackedAdapters

Matrices = Mapping[str, Tensor]
"""A (r, in) and B (out, r) of each layer by PEFT's names."""


class FlatAdapter(nn.Module):
    """Owns the matrices of all wrapped layers of a model, which get them anew for each forward pass."""

    def __init__(
        self, model: nn.Module, others: Sequence[tuple[LoraSettings, Matrices]] = (), *, batched: bool = False
    ) -> None:
        """Move the matrices of `model`, which has no trainable parameters afterwards, into one parameter.

        Args:
            model: a model with an adapter, the first one.
            others: settings and matrices of the other adapters; they differ in their values, scaling and dropout only.
            batched: see `StackedAdapters`.
        """
        super().__init__()
        named = lora.parameters(model)
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        self._sizes = [parameter.numel() for parameter in named.values()]
        self._layers = [layer for _, layer in lora.layers(model)]
        device = next(iter(named.values())).device
        adapters = [self.join({name: p.detach() for name, p in named.items()})]
        adapters += [self.join(matrices).to(device, torch.float32) for _, matrices in others]
        self.count = len(adapters)
        """Number of adapters."""
        self.values = nn.Parameter(torch.stack(adapters))
        """All elements of A, B and DoRA's norms of each layer, in the model's order: (adapters, elements) fp32."""
        first = self._layers[0]
        self.scalings = [first.scaling, *(settings.scaling for settings, _ in others)]
        self.dropouts = [first.dropout, *(settings.dropout for settings, _ in others)]
        self.stacked = StackedAdapters(self.scalings, self.dropouts, device, batched=batched) if others else None
        """What several adapters have in all layers; None with one."""
        for layer in self._layers:
            for attribute in layer.trained.values():
                delattr(layer, attribute)
        self.release()

    @property
    def layers(self) -> list[lora.LoraConv1D]:
        """The wrapped layers, in the model's order."""
        return self._layers

    @property
    def names(self) -> list[str]:
        """PEFT's names of the matrices, in the model's order."""
        return list(self._shapes)

    def forward(self, dtype: torch.dtype, first: int = 0, count: int | None = None) -> Tensor:
        """Return a copy of the elements of some adapters in `dtype`, for `assign`: (adapters, elements).

        With DoRA in fp32, as bf16 would change the norms, and so the whole frozen weight, by up to 0.4 %. Under ZeRO-3,
        only the copy is whole after this call.

        Args:
            dtype: of the copy.
            first: the first of these adapters.
            count: how many; None takes all from `first` on.
        """
        whole = first == 0 and count in (None, self.count)
        some = self.values if whole else self.values[first:][:count]
        return some.to(torch.float32 if self._layers[0].dora else dtype, copy=True)

    def assign(self, elements: Tensor, first: int = 0) -> None:
        """Give each layer its matrices, as views of `elements` (adapters, elements) of the adapters from `first` on."""
        one = len(elements) == 1
        assert one or len(elements) == self.count, "a forward pass has one adapter or all of them"
        parts = iter((self.split(elements) if one else self._split_all(elements)).values())
        for layer in self._layers:
            for attribute in layer.trained.values():
                setattr(layer, attribute, next(parts))
            layer.stacked = None if one else self.stacked
            if one:
                layer.scaling, layer.dropout = self.scalings[first], self.dropouts[first]

    def release(self) -> None:
        """Let the layers forget the copy of the last forward pass, which keeps the nodes of its gradient alive."""
        self.assign(self.values.detach()[:1])

    def seed_dropout(self, seeds: Sequence[int]) -> None:
        """Seed the dropout of the next forward passes, one seed for each adapter: (adapters,)."""
        device = self.values.device
        # Not `torch.manual_seed`, which collects a stack trace, a tenth of a step's time on a GPU.
        default = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
        generators = [default] if self.stacked is None else self.stacked.generators
        for generator, seed in zip(generators, seeds, strict=True):
            generator.manual_seed(seed)

    def split(self, elements: Tensor) -> dict[str, Tensor]:
        """Split a tensor that is laid out as one adapter in `values`, (elements,) or (1, elements), by name."""
        parts = zip(self._shapes.items(), torch.split(elements.view(-1), self._sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def rates(self, ratio: float) -> Tensor:
        """Return LoRA+'s factor of each element's learning rate, 1 for A and `ratio` for all else: (elements,)."""
        by_name = {name: 1.0 if "lora_A" in name else ratio for name in self._shapes}
        return self.join({name: torch.full(self._shapes[name], rate) for name, rate in by_name.items()})

    def _split_all(self, elements: Tensor) -> dict[str, Tensor]:
        """Split `elements` (adapters, elements) into stacked A (adapters, r, in) and B (adapters, out, r) by name."""
        parts = zip(self._shapes.items(), torch.split(elements, self._sizes, dim=1), strict=True)
        return {name: part.view(-1, *shape) for (name, shape), part in parts}

    def join(self, named: Matrices) -> Tensor:
        """Invert `split`: (elements,)."""
        return torch.cat([named[name].flatten() for name in self._shapes])
