"""Low-rank adaptation of GPT-2's `Conv1D` layers (Hu et al. 2021, "LoRA", section 4.1).

A target layer `x W + b` becomes `x W + b + (alpha / r) dropout(x) A^T B^T` with A (r, in) and B (out, r). Only A and B
are trained. They stay in fp32 whatever the precision of the frozen weights, and are cast for the product, as their
changes per step are too small for bf16. A fused `c_attn` (q, k and v in one matrix) gets one pair, or one for each of
some parts, as in the LoRA authors' `MergedLinear`: the pairs are computed and saved as one of their total rank, in
which a B has zeros at the other parts (`join_blocks`). With DoRA, the norms of the weight's columns are trained too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_dist.config import LoraSettings
from lora_dist.errors import UserError
from lora_dist.model import dora
from lora_dist.model.blocks import join_blocks, split_blocks
from lora_dist.model.initial import draw
from lora_dist.model.masks import keep_mask
from lora_dist.model.stacked import StackedAdapters

PEFT_PREFIX = "base_model.model."


class LoraConv1D(nn.Module):
    """A frozen `Conv1D` (weight (in, out), bias (out)) plus its trainable low-rank product."""

    bias: Tensor
    squares: Tensor

    def __init__(self, base: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
        """Wrap `base`; A and B are drawn from `generator` on the CPU, so every rank and device draws the same."""
        super().__init__()
        self.base = base
        weight = self.weight()
        self.scaling, self.dropout = settings.scaling, settings.dropout
        self.parts, self.dora = settings.parts, settings.dora
        a, b = draw(weight.shape, settings, generator)
        self.lora_A = nn.Parameter(a.to(weight.device))
        self.lora_B = nn.Parameter(b.to(weight.device))
        self.trained = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B"}
        """Names of the trainable tensors as attributes, by PEFT's names."""
        if self.dora:
            adapted = weight.float() + self.delta()
            self.lora_magnitude = nn.Parameter(torch.linalg.vector_norm(adapted, dim=0))
            self.trained["lora_magnitude_vector"] = "lora_magnitude"
            self.register_buffer("bias", base.get_parameter("bias").detach().clone(), persistent=False)
            self.register_buffer("squares", weight.detach().float().square().sum(0), persistent=False)
        self.drop: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        """Dropout of the next forward pass, see `kernels.common.drop`; None draws a mask in the pass."""
        self.stacked: StackedAdapters | None = None
        """With several adapters in the next forward pass: A is (adapters, r, in) then, and B (adapters, out, r)."""
        self.sizes: Sequence[int] = ()
        """Rows of each of them in that pass: (adapters,)."""
        self.adds_in_place = False
        """Whether the result of `base` may be changed in place, which saves a copy of it."""
        self._unmerged: Tensor | None = None
        self.train(base.training)

    @property
    def merged(self) -> bool:
        """Whether the product is part of the frozen weight now."""
        return self._unmerged is not None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        x, dropped = self._drop(x)
        out: Tensor = self.base(x)
        if self.merged:
            return out
        if self.stacked is not None:
            return self._add_stacked(out, dropped, self.stacked)
        a, b = self.lora_A.to(x.dtype), join_blocks(self.lora_B.to(x.dtype), self.parts)
        scaling = self.scaling / (1 - self.dropout) if self.training else self.scaling
        hidden = F.linear(dropped, a)
        if self.dora:
            return self._scale_columns(out, scaling * F.linear(hidden, b), None if dropped is x else dropped)
        if self.adds_in_place:
            return out.addmm_(hidden, b.t(), alpha=scaling)
        return torch.addmm(out.view(-1, b.shape[0]), hidden.view(-1, b.shape[1]), b.t(), alpha=scaling).view_as(out)

    def _drop(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x` (..., in), and A's input, which in training has zeros where dropout applies."""
        drop, self.drop = self.drop, None
        if self.merged or not self.training or not (self.dropout if self.stacked is None else self.stacked.drops):
            return x, x
        if drop is not None:
            return drop(x)
        if self.stacked is not None:
            return x, x * self.stacked.mask(self.sizes, x)
        return x, x * keep_mask(x.shape, self.dropout, x.dtype, x.device)

    def _add_stacked(self, out: Tensor, x: Tensor, adapters: StackedAdapters) -> Tensor:
        """Add the product of each adapter to its own rows of `out` (rows, out), given A's input x (rows, in)."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if self.parts:
            b = torch.stack([join_blocks(each, self.parts) for each in b])
        return adapters.add(out, x, a, b, self.sizes, training=self.training, in_place=self.adds_in_place)

    def _scale_columns(self, out: Tensor, product: Tensor, dropped: Tensor | None) -> Tensor:
        """Apply DoRA to `out`, x W + b, and `product`, its change by A and B: both (..., out).

        `dropped` (..., in) is the input with zeros where dropout applies, None where it does not.
        """
        with torch.no_grad():  # r rows through the frozen layer, which may be packed or partitioned
            projected = self.base(self.lora_A.to(self.bias.dtype)) - self.bias
        norms = dora.column_norms(self.squares, projected, self.lora_A, self.lora_B, self.scaling)
        frozen = out - self.bias if dropped is None else (self.base(dropped) - self.bias) / (1 - self.dropout)
        return dora.scale_columns(out, frozen, product, self.lora_magnitude / norms)

    def delta(self) -> Tensor:
        """Compute the change of the weight by the product, scaling (B A)^T in fp32: (in, out)."""
        return self.scaling * (join_blocks(self.lora_B.detach(), self.parts) @ self.lora_A.detach()).t()

    def merge(self) -> None:
        """Add the adapter to the frozen weight and keep a copy for `unmerge`; a second call changes nothing."""
        if not self.merged:
            weight = self.weight()
            self._unmerged = weight.detach().clone()
            adapted = weight.float() + self.delta()
            if self.dora:
                adapted *= self.lora_magnitude.detach() / torch.linalg.vector_norm(adapted, dim=0)
            weight.data.copy_(adapted)

    def unmerge(self) -> None:
        """Restore the bits from before `merge`; a second call changes nothing."""
        if self._unmerged is not None:
            self.weight().data.copy_(self._unmerged)
            self._unmerged = None

    def weight(self) -> Tensor:
        """Return the frozen weight: (in, out)."""
        return self.base.get_parameter("weight")


def initial_state(model: nn.Module, settings: LoraSettings, seed: int) -> dict[str, Tensor]:
    """Draw the matrices that `inject` would give to `model`, whose layers are wrapped already, by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, layer in layers(model):
        a, b = draw(layer.weight().shape, settings, generator)
        found |= {f"{PEFT_PREFIX}{name}.lora_A.weight": a, f"{PEFT_PREFIX}{name}.lora_B.weight": b}
    return found


def inject(model: nn.Module, settings: LoraSettings, seed: int, source: str = "--lora.targets") -> None:
    """Freeze `model` and wrap its target layers, in place.

    A target names a layer by the end of its path, as in PEFT: `c_proj` is both attention's and the MLP's, `mlp.c_proj`
    only the MLP's. The initial values depend on `seed` only, not on the device or the world size.

    Args:
        model: a GPT-2.
        settings: shape and initialisation of the matrices.
        seed: seed of the initial values.
        source: where the targets come from, the start of the error message.

    Raises:
        UserError: if a target matches no layer.
    """
    model.requires_grad_(False)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Conv1D)}
    generator = torch.Generator().manual_seed(seed)
    targets = ("c_attn",) if settings.parts else settings.targets
    for target in targets:
        if not any(_matches(name, target) for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(f"{source} {target} matches no layer: this model has {', '.join(known) or 'none'}")
    for name, layer in layers.items():
        if any(_matches(name, target) for target in targets):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraConv1D(layer, settings, generator))
    assert sum(p.requires_grad for p in model.parameters()) == len(parameters(model)), "others are trainable"
    assert trainable_count(model) == expected_count(model, settings), "the count differs from the formula"


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def layers(model: nn.Module) -> Iterator[tuple[str, LoraConv1D]]:
    """Iterate over the wrapped layers of `model` and their paths, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraConv1D))


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable matrices by PEFT's names, in the model's order; nothing else is trained or saved."""
    pairs = [(name, layer, *pair) for name, layer in layers(model) for pair in layer.trained.items()]
    return {f"{PEFT_PREFIX}{name}.{key}": getattr(layer, attribute) for name, layer, key, attribute in pairs}


def trainable_count(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in parameters(model).values())


def expected_count(model: nn.Module, settings: LoraSettings) -> int:
    """Compute the number of trainable parameters by formula: the sum over wrapped layers of r (in + out).

    Of pairs for parts of a layer, each counts so with a third of `out`; DoRA adds `out`.
    """
    shapes = [layer.weight().shape for _, layer in layers(model)]
    pairs, share = (len(settings.parts), 3) if settings.parts else (1, 1)
    return sum(pairs * settings.rank * (i + o // share) + settings.dora * o for i, o in shapes)


def from_peft(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a saved adapter from PEFT's layout to that of `parameters`; they differ with pairs for parts of a layer.

    Raises:
        UserError: if a B is not zero at a part of its layer that is not adapted.
    """
    parts = next((layer.parts for _, layer in layers(model)), ())
    return {name: split_blocks(tensor, parts) if "lora_B" in name else tensor for name, tensor in state.items()}


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a saved adapter, in PEFT's layout, into the wrapped layers.

    Raises:
        UserError: if names or shapes differ from the model's, or as in `from_peft`; nothing is copied then.
    """
    own, state = parameters(model), from_peft(model, state)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        first = missing[0] if missing else unexpected[0]
        raise UserError(
            f"the adapter does not fit the model: {len(missing)} of its matrices are missing and {len(unexpected)} are "
            f"unknown, first {first}: check --model.name and the adapter's target modules"
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise UserError(
                f"the adapter does not fit the model: {name} is {tuple(state[name].shape)}, the model needs "
                f"{tuple(parameter.shape)}: check --model.name and the rank"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def fold(model: nn.Module) -> None:
    """Merge every wrapped layer and remove its wrapper, in place: `model` is a plain GPT-2 again."""
    for name, layer in list(layers(model)):
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
