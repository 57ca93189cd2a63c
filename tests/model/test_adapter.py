"""Adapters on the disk: written, read back, merged, and refused."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Damage, overwriting, removing, rewriting
from safetensors import SafetensorError
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings, ModelSettings
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.adapter import (
    load_adapted,
    load_adapter,
    load_adapter_state,
    load_merged,
    save_adapter,
    save_merged,
)
from lora_dist.model.adapter_config import read_adapter_settings
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
    (rewriting("adapter_config.json", peft_type="LOHA"), "in {folder} is of peft_type LOHA: give a LoRA adapter"),
    *(
        (
            rewriting("adapter_config.json", **{name: value}),
            f"in {{folder}} has {name} {value!r}, which is not supported",
        )
        for name, value in (
            ("bias", "all"),
            ("rank_pattern", {"c_fc": 8}),
            ("alpha_pattern", {"c_fc": 8}),
            ("lora_bias", True),
            ("modules_to_save", ["lm_head"]),
            ("init_lora_weights", "pissa_niter_16"),
            ("init_lora_weights", "olora"),
            ("layer_replication", [[0, 1], [0, 2]]),
            ("alora_invocation_tokens", [12]),
            ("trainable_token_indices", [3]),
            ("target_parameters", ["wte.weight"]),
            ("a_field_of_tomorrow", {"strength": 0.5}),
        )
    ),
    *(
        (rewriting("adapter_config.json", **{name: value}), "{folder}/adapter_config.json is damaged (")
        for name, value in (("r", "many"), ("r", 0), ("lora_alpha", None), ("lora_dropout", "x"), ("target_modules", 7))
    ),
    (rewriting("adapter_config.json", r=3), "lora_A.weight is (2, 32), the model needs (3, 32)"),
    (
        rewriting("adapter_config.json", target_modules=["c_attn"]),
        "0 of its matrices are missing and 4 are",
    ),
    (
        rewriting("adapter_config.json", target_modules=["c_attn", "lm_head"]),
        "the adapter in {folder} has target_modules, of which lm_head matches no layer",
    ),
    (rewriting("adapter_config.json", target_modules=["q_proj"]), "q_proj matches no layer"),
    (removing("adapter_model.safetensors"), "{folder}/adapter_model.safetensors cannot be"),
    (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "{folder} has an adapter_model.bin: save it again with safe_serialization=True",
    ),
    (overwriting("adapter_model.safetensors", b"x"), "adapter_model.safetensors cannot be"),
    (overwriting("reference_token.safetensors", b"x"), "{folder}/reference_token.safetensors"),
]


@pytest.mark.parametrize(("damage", "message"), BAD_ADAPTERS)
def test_an_adapter_that_is_damaged_or_of_another_kind_is_refused(
    adapter: Path, gpt2: GPT2LMHeadModel, tokenizer: Any, damage: Damage, message: str
) -> None:
    damage(adapter)
    with pytest.raises(UserError, match=re.escape(message.replace("{folder}", str(adapter)))):
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
    merged, _ = load_merged(ModelSettings(name=str(tiny_gpt2)), adapter)
    adapted, _ = load_adapted(ModelSettings(name=str(tiny_gpt2)), adapter)
    assert base_fingerprint(adapted, tokenizer) == base != base_fingerprint(merged, tokenizer)
    assert not list(lora.layers(merged))
    load_adapter(adapter, gpt2, tokenizer)
    ids = torch.arange(300, 270, -1)[None]
    torch.testing.assert_close(merged.eval()(ids).logits, gpt2.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=f"{adapter.parent}/none is missing: train first"):
        load_merged(ModelSettings(name=str(tiny_gpt2)), adapter.parent / "none")


def test_a_merged_model_is_written_through_a_link_with_modes_of_the_umask(
    adapter: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    before = os.umask(0o022)
    try:
        save_merged(ModelSettings(name=str(tiny_gpt2)), adapter, tmp_path / "link")
    finally:
        os.umask(before)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "disk", "link"}
    assert (tmp_path / "link").is_symlink()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "disk").iterdir()} == {0o644}


def test_of_two_merges_at_once_the_second_is_refused(
    adapter: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def slow(*arguments: Any) -> Any:
        out.mkdir()
        (out / "model.safetensors").write_text("the other merge")
        return load_merged(*arguments)

    monkeypatch.setattr("lora_dist.model.adapter.load_merged", slow)
    with pytest.raises(UserError, match="out exists already: name a new folder"):
        save_merged(ModelSettings(name=str(tiny_gpt2)), adapter, out)
    assert (out / "model.safetensors").read_text() == "the other merge"
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}


def test_a_full_disk_is_the_error_of_the_system(
    adapter: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_merged(ModelSettings(name=str(tiny_gpt2)), adapter, tmp_path / "out")
    assert error.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
