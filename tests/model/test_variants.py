"""Pairs for parts of c_attn, rsLoRA and DoRA compute what PEFT computes, and files go both ways."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_gpt2 import save_with_reference_row
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lora_dist.config import LoraSettings, ModelSettings
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.adapter import load_adapted, load_merged, save_adapter
from lora_dist.model.base import identify, load_tokenizer
from lora_dist.model.blocks import join_blocks, split_blocks
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.masks import keep_mask
from lora_dist.presets import ORIGINAL

IDS = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))
EVERY_LAYER = ("c_attn", "c_proj", "c_fc")
KINDS = {
    "q and v": ORIGINAL.lora,
    "k": replace(ORIGINAL.lora, targets=("c_attn.k",)),
    "q, k and v, rsLoRA": LoraSettings(targets=("c_attn.q", "c_attn.k", "c_attn.v"), rslora=True, alpha=4),
    "rsLoRA": LoraSettings(targets=EVERY_LAYER, rslora=True, alpha=4),
    "DoRA": LoraSettings(targets=EVERY_LAYER, dora=True),
    "DoRA, rsLoRA": LoraSettings(targets=("c_attn",), dora=True, rslora=True, alpha=4, rank=3),
}
DROPOUTS = pytest.mark.parametrize("dropout", [0.0, 0.25], ids=["no dropout", "dropout"])


@pytest.fixture(scope="module")
def base(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 with a row for the reference token, so that PEFT computes with the same model."""
    return save_with_reference_row(tiny_gpt2, tmp_path_factory.mktemp("base"))


def plain(base: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32)


def injected(model: GPT2LMHeadModel, settings: LoraSettings) -> GPT2LMHeadModel:
    """The model in training, with an adapter that is far from its initial values."""
    lora.inject(model, settings, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in lora.parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.train()


def saved(model: GPT2LMHeadModel, settings: LoraSettings, base: Path, folder: Path) -> Path:
    state = {name: parameter.detach() for name, parameter in lora.parameters(model).items()}
    save_adapter(folder, state, settings, identify(model, load_tokenizer(ModelSettings(name=str(base))), str(base)))
    return folder


def in_peft(base: Path, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(plain(base), folder, is_trainable=True).train()


def loss(module: Any) -> Tensor:
    value: Tensor = module(input_ids=IDS).logits[..., :300].logsumexp(-1).mean()
    return value


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.eval()(input_ids=IDS).logits
    return found


def their_gradients(model: Any) -> dict[str, Tensor]:
    """Gradients of PEFT's parameters by the names under which they are saved."""
    named = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {name.replace("magnitude_vector.weight", "magnitude_vector"): grad for name, grad in named.items()}


class FixedDropout(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def use_the_same_masks(ours: GPT2LMHeadModel, theirs: Any, dropout: float) -> None:
    for name, layer in lora.layers(ours):
        mask = keep_mask((*IDS.shape, layer.lora_A.shape[1]), dropout, torch.float32, IDS.device)
        layer.drop = lambda x, mask=mask: (x, x * mask)
        theirs.get_submodule(lora.PEFT_PREFIX + name).lora_dropout["default"] = FixedDropout(mask / (1 - dropout))


@DROPOUTS
@pytest.mark.parametrize("kind", list(KINDS))
def test_forward_and_gradients_equal_pefts(kind: str, dropout: float, base: Path, tmp_path: Path) -> None:
    settings = replace(KINDS[kind], dropout=dropout)
    ours = injected(plain(base), settings)
    theirs = in_peft(base, saved(ours, settings, base, tmp_path))
    if dropout:
        use_the_same_masks(ours, theirs, dropout)
    ours_loss, theirs_loss = loss(ours), loss(theirs)
    torch.testing.assert_close(ours_loss, theirs_loss, rtol=1e-5, atol=1e-5)
    assert abs(ours_loss.item() - loss(plain(base)).item()) > 1e-3
    ours_loss.backward()  # type: ignore[no-untyped-call]
    theirs_loss.backward()  # type: ignore[no-untyped-call]
    gradients = their_gradients(theirs)
    assert gradients.keys() == lora.parameters(ours).keys()
    for name, parameter in lora.parameters(ours).items():
        expected = gradients[name]
        if settings.parts and "lora_B" in name:  # PEFT's zeros get gradients too
            found = join_blocks(torch.ones_like(parameter), settings.parts)
            expected = split_blocks(expected * found, settings.parts)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", list(KINDS))
def test_saved_adapters_load_in_peft_and_pefts_here_with_equal_logits(kind: str, base: Path, tmp_path: Path) -> None:
    settings = KINDS[kind]
    ours = injected(plain(base), settings)
    (first := tmp_path / "ours").mkdir()
    theirs = in_peft(base, saved(ours, settings, base, first))
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-5, atol=2e-5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    theirs.save_pretrained(second := tmp_path / "theirs")
    for load in (load_adapted, load_merged):
        for folder, model in ((first, ours), (second, theirs)):
            again, _ = load(ModelSettings(name=str(base)), folder)
            torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=2e-5)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(logits(again), logits(merged), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_adapter_is_loaded_to_the_bit_for_resuming(kind: str, base: Path, tmp_path: Path) -> None:
    settings = KINDS[kind]
    ours, again = injected(plain(base), settings), plain(base)
    saved(ours, settings, base, tmp_path)
    lora.inject(again, settings, seed=9)
    lora.load(again, load_file(tmp_path / "adapter_model.safetensors"))
    restored = lora.parameters(again)
    assert all(torch.equal(parameter, restored[name]) for name, parameter in lora.parameters(ours).items())


def test_an_adapter_of_other_parts_is_not_resumed(base: Path, tmp_path: Path) -> None:
    saved(injected(plain(base), ORIGINAL.lora), ORIGINAL.lora, base, tmp_path)
    state, other = load_file(tmp_path / "adapter_model.safetensors"), plain(base)
    lora.inject(other, replace(ORIGINAL.lora, targets=("c_attn.q", "c_attn.k")), seed=0)
    with pytest.raises(UserError, match=r"it adapts other parts of c_attn: check --lora.targets"):
        lora.load(other, state)


# The LoRA authors' layer and initialisation


def merged_linear(x: Tensor, a: Tensor, b: Tensor, enabled: tuple[bool, ...], width: int, scaling: float) -> Tensor:
    """The product in loralib's MergedLinear: a convolution with one group per enabled part, zeros elsewhere."""
    groups = sum(enabled)
    after = F.conv1d(F.linear(x, a).transpose(-2, -1), b.unsqueeze(-1), groups=groups).transpose(-2, -1)
    padded = x.new_zeros(*x.shape[:-1], width * len(enabled))
    columns = torch.tensor(enabled).repeat_interleave(width)
    padded[..., columns] = after
    return padded * scaling


@pytest.mark.parametrize("parts", ["qv", "qk", "qkv", "v"])
def test_a_layer_computes_what_the_authors_merged_linear_does(parts: str, base: Path) -> None:
    targets, enabled = tuple(f"c_attn.{part}" for part in parts), tuple(part in parts for part in "qkv")
    model = injected(plain(base), replace(ORIGINAL.lora, targets=targets)).eval()
    layer = model.transformer.h[1].attn.c_attn
    assert isinstance(layer, lora.LoraConv1D)
    x = torch.randn(2, 5, 32)
    expected = layer.base(x) + merged_linear(x, layer.lora_A, layer.lora_B, enabled, 32, 32 / 4)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_the_authors_initialisation_is_kaiming_uniform_and_changes_no_logit(base: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=768, n_layer=1, vocab_size=10))
    lora.inject(model, ORIGINAL.lora, seed=3)
    layer = model.transformer.h[0].attn.c_attn
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((8, 768), (2 * 768, 4))
    assert 0.99 / math.sqrt(768) < layer.lora_A.abs().max() <= 1 / math.sqrt(768)
    assert layer.lora_A.std().item() == pytest.approx(1 / math.sqrt(3 * 768), rel=0.03)
    assert not layer.lora_B.any()
    for settings in (ORIGINAL.lora, LoraSettings(dora=True, targets=EVERY_LAYER)):
        adapted = plain(base)
        lora.inject(adapted, settings, seed=3)
        torch.testing.assert_close(logits(adapted), logits(plain(base)), rtol=1e-6, atol=1e-5)


# With frozen layers as training has them


@pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["q and v", "DoRA"])
def test_packed_layers_compute_the_same(kind: str, kernels: Any, base: Path) -> None:
    model = injected(plain(base), replace(KINDS[kind], dropout=0.0))
    x = torch.randn(7, 32)

    def run() -> Mapping[str, Tensor]:
        out = model.transformer.h[0].attn.c_attn(x)
        out.square().sum().backward()
        return {"out": out.detach(), **{n: p.grad for n, p in lora.parameters(model).items() if p.grad is not None}}

    expected = {name: value.clone() for name, value in run().items()}
    model.zero_grad()
    kernels.freeze_layers(model, differentiable=True)
    found = run()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


# A true GPT-2 Medium


@pytest.mark.slow
def test_original_on_a_medium_shape_has_393_216_parameters_and_pefts_logits(tiny_gpt2: Path, tmp_path: Path) -> None:
    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16, vocab_size=301, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    load_tokenizer(ModelSettings(name=str(tiny_gpt2))).save_pretrained(tmp_path / "base")
    ours = injected(plain(tmp_path / "base"), ORIGINAL.lora)
    assert lora.trainable_count(ours) == 393_216
    theirs = in_peft(tmp_path / "base", saved(ours, ORIGINAL.lora, tmp_path / "base", tmp_path))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-4)
    assert (logits(ours) - logits(plain(tmp_path / "base"))).abs().max() > 0.05
