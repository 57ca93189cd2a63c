import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Damage, overwriting, removing, rewriting
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from lora_dist.config import DataSettings, LoraSettings, ModelSettings
from lora_dist.data.e2e import Example, load_split
from lora_dist.data.tokens import REFERENCE_TOKEN, encode_prompts, tokenize
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.base import base_fingerprint, identify, load_base, load_config, load_tokenizer, set_reference_row


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[GPT2LMHeadModel, Any]:
    settings = ModelSettings(name=str(folder))
    tokenizer = load_tokenizer(settings)
    return load_base(settings, tokenizer, dtype), tokenizer


@pytest.fixture
def copy(tmp_path: Path, tiny_gpt2: Path) -> Path:
    """A copy of the tiny GPT-2's folder, to be damaged."""
    return Path(shutil.copytree(tiny_gpt2, tmp_path / "gpt2"))


# Folders and hub ids


def test_a_local_folder_that_hides_a_hub_id_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    for load_it in (load_tokenizer, load_config):
        with pytest.raises(UserError, match=rf"--model.name gpt2, the folder {tmp_path}/gpt2, cannot be loaded"):
            load_it(ModelSettings(name="gpt2"))
        with pytest.raises(UserError, match=rf"--model.name {tmp_path}/gpt2 cannot be loaded"):
            load_it(ModelSettings(name=str(tmp_path / "gpt2")))


# The reference token


def test_the_reference_tokens_row_is_the_mean_of_all_others_on_both_sides(tiny_gpt2: Path) -> None:
    (first, tokenizer), (second, _) = load(tiny_gpt2), load(tiny_gpt2)
    rows = first.transformer.wte.weight
    assert len(rows) == len(tokenizer) == 301
    assert tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN) == 300
    torch.testing.assert_close(rows[300], rows[:300].mean(0))
    assert torch.equal(rows, second.transformer.wte.weight)
    assert first.lm_head.weight is rows


def test_a_checkpoint_that_has_the_token_keeps_its_row_and_is_the_same_base(tmp_path: Path, tiny_gpt2: Path) -> None:
    gpt2, tokenizer = load(tiny_gpt2)
    set_reference_row(gpt2, tokenizer, torch.arange(32.0))
    gpt2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, tokenizer_again = load(tmp_path)
    assert len(tokenizer_again) == len(again.transformer.wte.weight) == 301
    assert again.transformer.wte.weight[300].tolist() == list(range(32))
    assert base_fingerprint(again, tokenizer_again) == base_fingerprint(*load(tiny_gpt2))


@pytest.mark.shared
def test_no_lone_space_token_is_next_to_the_reference_token(shared: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(shared / "mini-gpt2")))
    examples = tokenize(tokenizer, [Example("name[The Eagle], food[French]", "The Eagle is French.")], 512)
    tokens = tokenizer.convert_ids_to_tokens(examples.ids.tolist())
    at = tokens.index(REFERENCE_TOKEN)
    assert (tokens[at - 1], tokens[at + 1]) == ("]", "ĠThe")
    assert "Ġ" not in tokens
    (prompt,) = encode_prompts(tokenizer, ["name[The Eagle], food[French]"])
    assert tokenizer.convert_ids_to_tokens(prompt) == tokens[: at + 1]


@pytest.mark.shared
def test_prompt_and_reference_encoded_separately_give_the_tokens_of_the_whole_text(shared: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(shared / "mini-gpt2")))
    examples = load_split(DataSettings(dir=shared / "e2e", limit_train=2000), "train")
    found = tokenize(tokenizer, examples, 512)
    texts = [f"{example.mr} {REFERENCE_TOKEN} {example.reference.strip()}" for example in examples]
    for index, whole in enumerate(tokenizer(texts).input_ids):
        row = found.ids[found.starts[index] : found.starts[index + 1]].tolist()
        assert row == [*whole, tokenizer.eos_token_id]
        assert row[found.prompt_lengths[index] - 1] == tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)


# The base model


def test_precision_and_dropout_are_those_of_the_settings(tiny_gpt2: Path, tokenizer: Any) -> None:
    settings = ModelSettings(name=str(tiny_gpt2), dropout=0.3)
    gpt2 = load_base(settings, tokenizer, torch.bfloat16)
    assert {parameter.dtype for parameter in gpt2.parameters()} == {torch.bfloat16}
    assert (gpt2.transformer.drop.p, gpt2.transformer.h[0].mlp.dropout.p) == (0.3, 0.3)
    assert gpt2.transformer.h[1].attn.attn_dropout.p == 0.3
    assert load(tiny_gpt2)[0].transformer.drop.p == 0.0


def test_the_fingerprint_is_that_of_the_frozen_weights_in_any_precision_with_or_without_an_adapter(
    tiny_gpt2: Path, gpt2: GPT2LMHeadModel, tokenizer: Any
) -> None:
    before = base_fingerprint(gpt2, tokenizer)
    assert base_fingerprint(*load(tiny_gpt2, torch.bfloat16)) == before
    set_reference_row(gpt2, tokenizer, torch.ones(32))
    lora.inject(gpt2, LoraSettings(rank=2, targets=("c_attn", "c_fc"), init="gaussian"), seed=0)
    assert base_fingerprint(gpt2, tokenizer) == before


def test_the_fingerprint_differs_when_any_one_tensor_differs(gpt2: GPT2LMHeadModel, tokenizer: Any) -> None:
    found = {base_fingerprint(gpt2, tokenizer)}
    parameters = list(gpt2.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.1)
            found.add(base_fingerprint(gpt2, tokenizer))
    assert len(found) == len(parameters) + 1


def remove_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def add_head(folder: Path) -> None:
    state = {**load_file(folder / "model.safetensors"), "classifier.weight": torch.ones(2, 32)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: list[tuple[Damage, str]] = [
    (shutil.rmtree, "cannot be loaded"),
    (overwriting("config.json", b"{"), "cannot be loaded"),
    (rewriting("config.json", model_type="opt"), "is a opt model: give a GPT-2"),
    (rewriting("config.json", model_type="no-such-model"), "cannot be loaded"),
    (rewriting("config.json", n_inner=64), "cannot be loaded"),
    (rewriting("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised"),
    (rewriting("config.json", quantization_config={"quant_method": "bitsandbytes"}), "is quantised"),
    (rewriting("config.json", add_cross_attention=True), "has cross-attention"),
    (rewriting("config.json", tie_word_embeddings=False), "has an output projection of its own"),
    (rewriting("config.json", scale_attn_by_inverse_layer_idx=True), "scales attention differently"),
    (rewriting("config.json", reorder_and_upcast_attn=True), "scales attention differently"),
    (rewriting("config.json", scale_attn_weights=False), "scales attention differently"),
    (rewriting("config.json", pruned_heads={"0": [1]}), "has pruned heads"),
    (rewriting("config.json", auto_map={"AutoModelForCausalLM": "own.Model"}), "has code of its own"),
    (add_adapter, "holds a PEFT adapter next to the model"),
    (add_head, "has weights that are not GPT-2's, such as classifier.weight"),
    (removing("model.safetensors"), "cannot be loaded"),
    (remove_weight, "lacks 1 of GPT-2's weights, such as transformer.h.1.mlp.c_fc.weight"),
    (cut_weights, "cannot be loaded"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_checkpoint_that_is_no_complete_gpt2_is_refused_by_name(
    copy: Path, tokenizer: Any, damage: Damage, message: str
) -> None:
    damage(copy)
    with pytest.raises(UserError) as error:
        load_base(ModelSettings(name=str(copy)), tokenizer, torch.float32)
    assert str(error.value).startswith(f"--model.name {copy} {message}")
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(copy: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(copy)))
    small = load(copy)[0]
    small.resize_token_embeddings(200)
    small.save_pretrained(copy)
    with pytest.raises(UserError, match=f"--model.name {copy} .* 300 .* 200"):
        load_base(ModelSettings(name=str(copy)), tokenizer, torch.float32)


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize("damage", [shutil.rmtree, drop_tokenizer, overwriting("tokenizer.json", b"{")])
def test_a_folder_without_a_tokenizer_is_refused_by_name(copy: Path, damage: Damage) -> None:
    damage(copy)
    with pytest.raises(UserError, match=f"--model.name {copy} cannot be loaded"):
        load_tokenizer(ModelSettings(name=str(copy)))


@pytest.mark.parametrize("name", ["/no/such/gpt2", "./gpt2", "~/gpt2", "models/of/mine"])
def test_a_folder_that_does_not_exist_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(UserError, match=rf"--model\.name {name} cannot be loaded \(there is no such folder\)"):
        load_tokenizer(ModelSettings(name=name))


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline(tokenizer: Any) -> None:
    settings = ModelSettings(name="no-such-owner/no-such-gpt2")
    with pytest.raises(UserError, match=r"--model\.name no-such-owner/no-such-gpt2 cannot be loaded"):
        load_tokenizer(settings)
    with pytest.raises(UserError, match=r"--model\.name no-such-owner/no-such-gpt2 cannot be loaded"):
        load_base(settings, tokenizer, torch.float32)


def test_the_identity_is_name_fingerprint_and_a_copy_of_the_reference_row(
    tiny_gpt2: Path, gpt2: GPT2LMHeadModel, tokenizer: Any
) -> None:
    identity = identify(gpt2, tokenizer, "a name")
    assert (identity.name, identity.fingerprint) == ("a name", base_fingerprint(gpt2, tokenizer))
    row = gpt2.transformer.wte.weight[300].detach().clone()
    set_reference_row(gpt2, tokenizer, torch.zeros(32))
    assert torch.equal(identity.reference_row, row)
    low, _ = load(tiny_gpt2, torch.bfloat16)
    assert identify(low, tokenizer, "a name").reference_row.dtype == torch.float32
