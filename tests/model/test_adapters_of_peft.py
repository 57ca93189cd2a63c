"""Adapters that PEFT saved: each kind gives PEFT's logits or is refused by name, never something in between."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gpt2 import save_with_reference_row
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings, ModelSettings
from lora_dist.data.tokens import REFERENCE_TOKEN
from lora_dist.decoding.derived_run import source_settings
from lora_dist.errors import UserError
from lora_dist.model.adapter import load_adapted, load_merged
from lora_dist.model.base import load_tokenizer

IDS = torch.arange(300, 260, -1)[None]
"""Tokens of the tiny GPT-2, with the reference token among them."""


@pytest.fixture(scope="module")
def base(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 with a row for the reference token, so that PEFT computes with the same model."""
    return save_with_reference_row(tiny_gpt2, tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns about kinds that change the base model, and about resized embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trained(base: Path, folder: Path, **fields: Any) -> Tensor:
    """Save an adapter with PEFT after a training that changed all it trains, and return its logits as PEFT reads it."""
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(plain(base), peft.LoraConfig(**{**given, **fields}))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return logits(peft.PeftModel.from_pretrained(plain(base), folder))


def plain(base: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random B": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dropout": {"lora_dropout": 0.5},
    "rank-stabilised": {"use_rslora": True},
    "weight-decomposed": {"use_dora": True, "lora_dropout": 0.5},
    "weight-decomposed and rank-stabilised": {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"},
    "every layer": {"target_modules": "all-linear"},
    "both c_proj": {"target_modules": ["c_proj"]},
    "one c_proj": {"target_modules": ["mlp.c_proj"]},
    "full paths": {"target_modules": ["transformer.h.1.attn.c_attn", "transformer.h.0.mlp.c_fc"]},
    "a pattern": {"target_modules": r".*\.h\.1\..*(c_attn|c_fc)"},
    "excluded layers": {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["mlp.c_proj"]},
    "an excluding pattern": {"target_modules": ["c_attn"], "exclude_modules": r".*h\.0\..*"},
    "some blocks": {"layers_to_transform": [1]},
    "one block of a named list": {"layers_to_transform": 0, "layers_pattern": "h"},
    "in bf16": {},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_gives_pefts_logits(kind: str, base: Path, tmp_path: Path) -> None:
    expected = trained(base, tmp_path, **KINDS[kind])
    if kind == "in bf16":
        state = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
        save_file(state, tmp_path / "adapter_model.safetensors")
        expected = logits(peft.PeftModel.from_pretrained(plain(base), tmp_path))
    assert (expected - logits(plain(base))).abs().max() > 0.05
    for load in (load_adapted, load_merged):
        model, _ = load(ModelSettings(name=str(base)), tmp_path)
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    assert source_settings(tmp_path).lora.scaling == (4.0 if "rank-stabilised" in kind else 2.0)


def test_the_settings_of_an_adapter_are_those_of_its_config(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path, target_modules=["c_attn", "c_fc"], lora_dropout=0.25)
    settings = source_settings(tmp_path)
    assert settings.model.name == str(base)
    assert settings.lora == LoraSettings(rank=4, alpha=8, dropout=0.25, targets=("c_attn", "c_fc"))


REFUSED: dict[str, dict[str, Any]] = {
    "init_lora_weights 'pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "alora_invocation_tokens [280, 281]": {"alora_invocation_tokens": [280, 281]},
    "rank_pattern {'h.1.attn.c_attn': 2}": {"rank_pattern": {"h.1.attn.c_attn": 2}},
    "alpha_pattern {'h.1.attn.c_attn': 2}": {"alpha_pattern": {"h.1.attn.c_attn": 2}},
    "bias 'all'": {"bias": "all"},
    "bias 'lora_only'": {"bias": "lora_only"},
    "lora_bias True": {"lora_bias": True},
    "modules_to_save ['ln_f']": {"modules_to_save": ["ln_f"]},
    "trainable_token_indices [3, 4]": {"trainable_token_indices": [3, 4]},
    "wte matches no layer": {"target_modules": ["c_attn", "wte"]},
}


@pytest.mark.parametrize("named", list(REFUSED))
def test_an_adapter_that_computes_something_else_is_refused_by_name(named: str, base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path, **REFUSED[named])
    with pytest.raises(UserError) as error:
        load_merged(ModelSettings(name=str(base)), tmp_path)
    assert f"the adapter in {tmp_path} has " in str(error.value)
    assert named in str(error.value)
    assert "--lora.targets" not in str(error.value)


# The embedding of the reference token


def resized(tiny_gpt2: Path, folder: Path, change: Any = None) -> Tensor:
    """Save an adapter next to the embeddings that a user has resized for the reference token; return its row."""
    model, tokenizer = plain(tiny_gpt2), load_tokenizer(ModelSettings(name=str(tiny_gpt2)))
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        model.transformer.wte.weight[-1] = torch.linspace(-1, 1, 32)
        if change is not None:
            change(model.transformer.wte.weight)
    fields = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**fields, init_lora_weights=False))
    adapted.save_pretrained(folder, save_embedding_layers=True)
    return logits(adapted)


def test_embeddings_resized_for_the_reference_token_are_taken_with_its_row(tiny_gpt2: Path, tmp_path: Path) -> None:
    expected = resized(tiny_gpt2, tmp_path)
    assert any("wte" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    merged, tokenizer = load_merged(ModelSettings(name=str(tiny_gpt2)), tmp_path)
    row = merged.transformer.wte.weight[tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)]
    assert torch.equal(row, torch.linspace(-1, 1, 32))
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)


def retrain_a_row(weight: Tensor) -> None:
    weight[7] += 0.01


def test_embeddings_that_were_trained_are_refused_with_what_to_do(tiny_gpt2: Path, tmp_path: Path) -> None:
    resized(tiny_gpt2, tmp_path, retrain_a_row)
    with pytest.raises(UserError, match=r"has embeddings .* that are not the base.* save_embedding_layers=False"):
        load_merged(ModelSettings(name=str(tiny_gpt2)), tmp_path)


def test_embeddings_with_other_tokens_are_refused_with_what_to_do(tiny_gpt2: Path, tmp_path: Path) -> None:
    resized(tiny_gpt2, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    longer = {name: torch.cat([t, t[:2]]) if "lora_" not in name else t for name, t in load_file(file).items()}
    save_file(longer, file)
    with pytest.raises(UserError, match="save_embedding_layers=False"):
        load_merged(ModelSettings(name=str(tiny_gpt2)), tmp_path)


def test_every_field_of_pefts_config_is_refused_unless_it_is_off_or_known(base: Path, tmp_path: Path) -> None:
    """A field of tomorrow's PEFT that is off in a plain adapter is no reason to refuse it."""
    trained(base, tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    for name, off in (("a_new_kind", None), ("a_new_flag", False), ("a_new_list", []), ("a_new_table", {})):
        file.write_text(json.dumps({**saved, name: off}))
        load_merged(ModelSettings(name=str(base)), tmp_path)
        file.write_text(json.dumps({**saved, name: off or True}))
        with pytest.raises(UserError, match=f"has {name} True, which is not supported"):
            load_merged(ModelSettings(name=str(base)), tmp_path)
