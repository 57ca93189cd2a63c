"""Adapters on the disk: written, read back, merged, and refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Damage, overwriting, removing, rewriting
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings, ModelSettings
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.adapter import load_adapter, load_adapter_state, load_merged, read_adapter_settings, save_adapter
from lora_dist.model.base import base_fingerprint, identify, load_base, load_tokenizer, set_reference_row

SETTINGS = LoraSettings(rank=2, alpha=4.0, dropout=0.25, targets=("c_attn", "c_fc"), init="gaussian")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[GPT2LMHeadModel, Any]:
    settings = ModelSettings(name=str(folder))
    tokenizer = load_tokenizer(settings)
    return load_base(settings, tokenizer, dtype), tokenizer


@pytest.fixture
def adapter(tmp_path: Path, tiny_gpt2: Path) -> Path:
    """Folder of an adapter of the tiny GPT-2."""
    gpt2, tokenizer = load(tiny_gpt2)
    identity = identify(gpt2, tokenizer, str(tiny_gpt2))
    lora.inject(gpt2, SETTINGS, seed=1)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(folder, {name: p.detach() for name, p in lora.parameters(gpt2).items()}, SETTINGS, identity)
    return folder


def test_an_adapter_is_loaded_to_the_bit_with_its_shape_and_reference_row(
    adapter: Path, tiny_gpt2: Path, gpt2: GPT2LMHeadModel, tokenizer: Any
) -> None:
    settings = read_adapter_settings(adapter)
    assert (settings.rank, settings.alpha, settings.dropout) == (2, 4.0, 0.25)
    assert settings.targets == ("c_attn", "c_fc")
    trained, _ = load(tiny_gpt2)
    lora.inject(trained, SETTINGS, seed=1)
    set_reference_row(gpt2, tokenizer, torch.zeros(32))
    load_adapter(adapter, gpt2, tokenizer)
    ids = torch.arange(300, 270, -1)[None]
    assert torch.equal(gpt2.eval()(ids).logits, trained.eval()(ids).logits)


def test_an_adapter_of_another_base_is_refused(adapter: Path, gpt2: GPT2LMHeadModel, tokenizer: Any) -> None:
    with torch.no_grad():
        gpt2.transformer.h[0].mlp.c_proj.weight.mul_(1.1)
    with pytest.raises(UserError, match=f"the adapter in {adapter} was trained on another base model: .*--model.name"):
        load_adapter(adapter, gpt2, tokenizer)


BAD_ADAPTERS: list[tuple[Damage, str]] = [
    (shutil.rmtree, "{folder} holds no adapter"),
    (overwriting("adapter_config.json", b"{"), "{folder} holds no adapter"),
    (overwriting("adapter_config.json", b"[]"), "{folder} holds no adapter"),
    (overwriting("adapter_config.json", b'{"peft_type": "LORA"}'), "lacks r, lora_alpha or target_modules"),
    (rewriting("adapter_config.json", peft_type="LOHA"), "in {folder} is not a plain LoRA"),
    (rewriting("adapter_config.json", use_dora=True), "in {folder} is not a plain LoRA"),
    (rewriting("adapter_config.json", use_rslora=True), "in {folder} is not a plain LoRA"),
    (rewriting("adapter_config.json", bias="all"), "in {folder} trains biases or mixes ranks"),
    (rewriting("adapter_config.json", rank_pattern={"c_fc": 8}), "in {folder} trains biases"),
    (rewriting("adapter_config.json", alpha_pattern={"c_fc": 8}), "in {folder} trains biases"),
    (rewriting("adapter_config.json", r=3), "lora_A.weight is (2, 32), the model needs (3, 32)"),
    (
        rewriting("adapter_config.json", target_modules=["c_attn"]),
        "0 of its matrices are missing and 4 are",
    ),
    (rewriting("adapter_config.json", target_modules=["q_proj"]), "q_proj matches no layer"),
    (removing("adapter_model.safetensors"), "{folder}/adapter_model.safetensors cannot be"),
    (overwriting("adapter_model.safetensors", b"x"), "adapter_model.safetensors cannot be"),
    (overwriting("reference_token.safetensors", b"x"), "{folder}/reference_token.safetensors"),
]


@pytest.mark.parametrize(("damage", "message"), BAD_ADAPTERS)
def test_an_adapter_that_is_damaged_or_of_another_kind_is_refused(
    adapter: Path, gpt2: GPT2LMHeadModel, tokenizer: Any, damage: Damage, message: str
) -> None:
    damage(adapter)
    with pytest.raises(UserError, match=re.escape(message.format(folder=adapter))):
        load_adapter(adapter, gpt2, tokenizer)


def test_the_saved_matrices_are_read_back_to_the_bit(adapter: Path, tiny_gpt2: Path) -> None:
    gpt2, _ = load(tiny_gpt2)
    lora.inject(gpt2, SETTINGS, seed=1)
    state, expected = load_adapter_state(adapter), lora.parameters(gpt2)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_merged_model_is_plain_with_the_adapters_logits_and_the_bases_fingerprint(
    adapter: Path, tiny_gpt2: Path, gpt2: GPT2LMHeadModel, tokenizer: Any
) -> None:
    base = base_fingerprint(gpt2, tokenizer)
    merged, _, fingerprint = load_merged(ModelSettings(name=str(tiny_gpt2)), adapter)
    assert fingerprint == base != base_fingerprint(merged, tokenizer)
    assert not list(lora.layers(merged))
    load_adapter(adapter, gpt2, tokenizer)
    ids = torch.arange(300, 270, -1)[None]
    torch.testing.assert_close(merged.eval()(ids).logits, gpt2.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=f"{adapter.parent}/none is missing: train first"):
        load_merged(ModelSettings(name=str(tiny_gpt2)), adapter.parent / "none")
