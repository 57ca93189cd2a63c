"""LoRA+ as PEFT's optimizer makes its steps, on whole parameters and on ZeRO's partitions of them."""

from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings
from lora_dist.model import lora
from lora_dist.model.flat_adapter import FlatAdapter
from lora_dist.training.lora_plus import LoraPlusAdamW, adamw

RATIO, STEPS, RATE, DECAY = 16.0, 8, 1e-2, 0.1


def adapter(gpt2: GPT2LMHeadModel, dora: bool) -> FlatAdapter:
    lora.inject(gpt2, LoraSettings(targets=("c_attn", "c_fc"), init="gaussian", dora=dora), seed=1)
    return FlatAdapter(gpt2)


def gradients(flat: FlatAdapter) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(flat.values.shape, generator=generator) for _ in range(STEPS)]


def train(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, gradients: list[torch.Tensor]) -> None:
    for number, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = RATE / (1 + number)
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("dora", [False, True])
def test_steps_are_those_of_pefts_optimizer(gpt2: GPT2LMHeadModel, dora: bool) -> None:
    flat = adapter(gpt2, dora)
    start = {name: tensor.clone() for name, tensor in flat.split(flat.values.detach()).items()}
    model: Any = peft.get_peft_model(
        GPT2LMHeadModel(gpt2.config),
        peft.LoraConfig(r=4, use_dora=dora, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    )
    peft.set_peft_model_state_dict(model, start)
    theirs: Any = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY
    )
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    named = {name.replace("vector.weight", "vector"): parameter for name, parameter in named.items()}
    ratios = [group["lr"] for group in theirs.param_groups]
    groups = [{"params": [flat.values], "weight_decay": DECAY}]
    train(adamw(groups, flat, lora_plus_ratio=RATIO, rank=0), flat.values, gradients(flat))
    for number, gradient in enumerate(gradients(flat)):
        for group, ratio in zip(theirs.param_groups, ratios, strict=True):
            group["lr"] = ratio * RATE / (1 + number)
        for name, part in flat.split(gradient).items():
            named[name].grad = part.clone()
        theirs.step()
    for name, part in flat.split(flat.values.detach()).items():
        torch.testing.assert_close(part, named[name].detach(), rtol=1e-5, atol=1e-6, msg=name)


def test_a_ratio_of_one_is_plain_adamw(gpt2: GPT2LMHeadModel) -> None:
    flat = adapter(gpt2, dora=False)
    groups = [{"params": [flat.values], "weight_decay": DECAY}]
    assert type(adamw(groups, flat, lora_plus_ratio=1.0, rank=0)) is torch.optim.AdamW


@pytest.mark.parametrize(("ranks", "size"), [(1, 5), (2, 3), (2, 4), (3, 2)])
def test_a_rank_of_zero_trains_its_padded_partition_as_the_whole(ranks: int, size: int) -> None:
    rates, gradient = torch.tensor([1.0, 16.0, 1.0, 16.0, 2.0]), torch.tensor([3.0, -1.0, 2.0, 1.0, -2.0])
    whole = torch.nn.Parameter(torch.arange(5.0))
    train(LoraPlusAdamW(whole, rates, 0, lr=0.0, weight_decay=DECAY), whole, [gradient] * STEPS)
    start, padded = torch.arange(5.0), torch.zeros(ranks * size - 5)
    parts = []
    for rank in range(ranks):
        own = slice(rank * size, (rank + 1) * size)
        part = torch.nn.Parameter(torch.cat([start, padded])[own].clone())
        optimizer = LoraPlusAdamW(torch.nn.Parameter(start.clone()), rates, rank, lr=0.0, weight_decay=DECAY)
        optimizer.param_groups[0]["params"] = [part]  # as DeepSpeed does
        train(optimizer, part, [torch.cat([gradient, padded])[own]] * STEPS)
        parts.append(part.detach())
    assert torch.equal(torch.cat(parts)[:5], whole.detach())
