"""The adapter as one parameter: its views are the matrices, and AdamW changes them as if they were separate."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from lora_dist.config import Settings
from lora_dist.model import lora
from lora_dist.model.flat_adapter import FlatAdapter
from lora_dist.presets import BASELINE, IMPROVED

PRESETS = pytest.mark.parametrize("preset", [BASELINE, IMPROVED], ids=["baseline", "improved"])


def inject(gpt2: GPT2LMHeadModel, preset: Settings) -> dict[str, Tensor]:
    """Wrap the layers, without a matrix of zeros; return a copy of the matrices by PEFT's names."""
    lora.inject(gpt2, replace(preset.lora, init="gaussian", dropout=0.0), seed=3)
    return {name: parameter.detach().clone() for name, parameter in lora.parameters(gpt2).items()}


@PRESETS
def test_the_layers_matrices_are_views_of_the_one_parameter(gpt2: GPT2LMHeadModel, preset: Settings) -> None:
    before = inject(gpt2, preset)
    flat = FlatAdapter(gpt2)
    assert flat.names == list(before)
    assert flat.values.dtype == torch.float32
    assert flat.values.numel() == sum(matrix.numel() for matrix in before.values())
    for (name, layer), (a, b) in zip(lora.layers(gpt2), pairs(before), strict=True):
        matrices: list[Tensor] = [layer.lora_A, layer.lora_B]
        for matrix, expected in zip(matrices, (a, b), strict=True):
            assert torch.equal(matrix, expected), name
            assert matrix.untyped_storage().data_ptr() == flat.values.untyped_storage().data_ptr()
    with torch.no_grad():
        flat.values.mul_(2)
    for doubled, expected in zip(flat.split(flat.values).values(), before.values(), strict=True):
        assert torch.equal(doubled, 2 * expected)
    for layer, (a, b) in zip(flat.layers, pairs(before), strict=True):
        assert torch.equal(layer.lora_A, 2 * a)
        assert torch.equal(layer.lora_B, 2 * b)


def pairs(named: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    matrices = list(named.values())
    return list(zip(matrices[::2], matrices[1::2], strict=True))


@PRESETS
def test_only_the_one_parameter_is_trained_and_it_is_no_buffer_of_the_model(
    gpt2: GPT2LMHeadModel, preset: Settings
) -> None:
    inject(gpt2, preset)
    flat = FlatAdapter(gpt2)
    assert [name for name, parameter in gpt2.named_parameters() if parameter.requires_grad] == []
    assert [name for name, _ in flat.named_parameters()] == ["values"]
    assert not any("lora" in name for name, _ in (*gpt2.named_parameters(), *gpt2.named_buffers()))


@PRESETS
def test_split_and_join_are_inverse_whatever_the_order_of_the_names(gpt2: GPT2LMHeadModel, preset: Settings) -> None:
    before = inject(gpt2, preset)
    flat = FlatAdapter(gpt2)
    found = flat.split(flat.values.detach())
    assert list(found) == list(before)
    assert all(torch.equal(found[name], matrix) for name, matrix in before.items())
    assert torch.equal(flat.join(dict(reversed(found.items()))), flat.values[0])


def test_the_copy_for_a_forward_pass_is_cast_once_and_its_gradient_is_fp32(gpt2: GPT2LMHeadModel) -> None:
    inject(gpt2, IMPROVED)
    flat = FlatAdapter(gpt2)
    for dtype in (torch.float32, torch.bfloat16):
        copy = flat(dtype)
        assert copy.dtype == dtype
        assert copy.data_ptr() != flat.values.data_ptr()
        assert torch.equal(copy, flat.values.to(dtype))
        flat.assign(copy)
        assert all(layer.lora_A.dtype == layer.lora_B.dtype == dtype for layer in flat.layers)
        (gradient,) = torch.autograd.grad([layer.lora_B.sum() for layer in flat.layers], flat.values)
        assert gradient.dtype == torch.float32
        for name, part in flat.split(gradient).items():
            assert (part == float("lora_B" in name)).all()


@PRESETS
def test_adamw_over_the_one_parameter_is_adamw_over_separate_ones_to_the_bit(
    gpt2: GPT2LMHeadModel, preset: Settings
) -> None:
    separate = {name: nn.Parameter(matrix) for name, matrix in inject(gpt2, preset).items()}
    flat = FlatAdapter(gpt2)
    build: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    ours, theirs = (build(p, lr=1e-2, weight_decay=0.01, fused=True) for p in ([flat.values], [*separate.values()]))
    torch.manual_seed(0)
    for _ in range(10):
        gradient = torch.randn_like(flat.values)
        flat.values.grad = gradient.clone()
        for name, part in flat.split(gradient).items():
            separate[name].grad = part.clone()
        ours.step()
        theirs.step()
    for name, part in flat.split(flat.values.detach()).items():
        assert torch.equal(part, separate[name]), name
    for key in ("exp_avg", "exp_avg_sq"):
        for name, part in flat.split(ours.state[flat.values][key]).items():
            assert torch.equal(part, theirs.state[separate[name]][key]), name
