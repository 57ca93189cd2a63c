"""Runs made from an existing adapter: to decode it with other settings, or because PEFT trained it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from launching import call_here
from made_runs import made_run
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from lora_dist.cli.main import main
from lora_dist.config import LoraSettings, ModelSettings, Settings
from lora_dist.config_io import read_settings
from lora_dist.data.e2e import one_line
from lora_dist.decoding.derived_run import derived_run, source_settings
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.adapter import save_adapter
from lora_dist.model.base import identify, load_base, load_tokenizer
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir
from lora_dist.training.trainer import load_model


def derive(target: RunDir, source: Path, settings: Settings = IMPROVED, problem: str | None = None) -> None:
    """Make `target` a run with the adapter of `source`, and decode nothing, or refuse with `problem`."""
    with derived_run(target, source, settings):
        assert read_settings(target) == settings
        if problem is not None:
            raise UserError(problem)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def foreign_adapter(folder: Path) -> Path:
    """An adapter as PEFT writes it next to a model card, in the folder of a checkpoint of transformers' Trainer."""
    matrices = {f"base_model.model.transformer.h.0.attn.c_attn.lora_{k}.weight": torch.ones(2, 2) for k in ("A", "B")}
    (folder / "global_step4" / "zero").mkdir(parents=True)
    (folder / "global_step4" / "zero" / "state.pt").write_text("large")
    for name in ("README.md", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("{}")
    save_file(matrices, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "gpt2-medium"}))
    return folder


def test_a_derived_run_has_the_adapter_the_log_and_the_new_settings(tmp_path: Path) -> None:
    run, derived = made_run(tmp_path / "run"), RunDir(tmp_path / "derived")
    settings = source_settings(run.root)
    assert settings == IMPROVED
    derive(derived, run.root, settings)
    assert read_settings(derived) == settings
    assert derived.metrics.read_bytes() == run.metrics.read_bytes()
    assert [p.read_bytes() for p in derived.adapter.iterdir()] == [p.read_bytes() for p in run.adapter.iterdir()]
    derive(derived, run.root, settings)  # again, as after a kill
    derived.config.unlink()  # a kill came before it
    derive(derived, run.root, settings)
    assert read_settings(derived) == settings


def test_of_a_folder_with_an_adapter_only_the_adapter_is_copied(tmp_path: Path) -> None:
    adapter, derived = foreign_adapter(tmp_path / "checkpoint-4"), RunDir(tmp_path / "derived")
    settings = source_settings(adapter)
    assert (settings.model.name, settings.lora.rank, settings.lora.alpha) == ("gpt2-medium", 2, 4)
    derive(derived, adapter, settings)
    assert {path.name for path in derived.adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(derived.config.read_text())
    assert (config["counts"], config["world"]) == ({"trainable": 8}, None)


def test_no_other_run_is_overwritten_by_a_derived_one(tmp_path: Path) -> None:
    run, other = made_run(tmp_path / "run"), made_run(tmp_path / "other")
    for target in (other, run):
        target.checkpoints.mkdir(exist_ok=True)
    for folder in (other.root, run.root):
        before = contents(folder)
        with pytest.raises(UserError, match="is no copy of"):
            derive(RunDir(folder), run.root)
        assert contents(folder) == before


@pytest.mark.parametrize("source", ["run", "run/adapter", "link"])
def test_a_run_is_not_replaced_by_its_own_adapter(source: str, tmp_path: Path) -> None:
    """Its config.json and log would be lost, where checkpoints do not tell it from a copy."""
    run = made_run(tmp_path / "run")
    (run.adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "link").symlink_to(run.root)
    before = contents(run.root)
    with pytest.raises(UserError, match="is no copy of"):
        derive(run, tmp_path / source)
    assert contents(run.root) == before


def test_a_folder_that_is_no_run_is_left_alone_even_with_the_same_adapter(tmp_path: Path) -> None:
    run, model = made_run(tmp_path / "run"), tmp_path / "model"
    shutil.copytree(run.adapter, model / "adapter")
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    before = contents(model)
    with pytest.raises(UserError, match="is no copy of"):
        derive(RunDir(model), run.root)
    assert contents(model) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_refusal_leaves_nothing_of_a_new_folder(exists: bool, tmp_path: Path) -> None:
    run, derived = made_run(tmp_path / "run"), RunDir(tmp_path / "derived")
    if exists:
        derived.root.mkdir()
    with pytest.raises(UserError, match="not that adapter"):
        derive(derived, run.root, problem="not that adapter")
    assert contents(derived.root) == {}


def test_a_refusal_leaves_an_earlier_copy_as_it_was(tmp_path: Path) -> None:
    run, derived = made_run(tmp_path / "run"), RunDir(tmp_path / "derived")
    derive(derived, run.root)
    before = contents(derived.root)
    other = replace(IMPROVED, decode=replace(IMPROVED.decode, num_beams=3))
    with pytest.raises(UserError, match="no such data"):
        derive(derived, run.root, other, problem="no such data")
    assert contents(derived.root) == before


def test_a_source_without_weights_is_refused_by_name(tmp_path: Path) -> None:
    run, derived = made_run(tmp_path / "run"), RunDir(tmp_path / "derived")
    derive(derived, run.root)
    (run.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="is no copy of"):
        derive(derived, run.root)
    shutil.rmtree(run.adapter)
    with pytest.raises(UserError, match="adapter is missing: train first"):
        derive(RunDir(tmp_path / "new"), run.root)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", [3, ["gpt2"], {}, False])
def test_an_adapter_of_a_base_without_a_name_is_refused(name: object, tmp_path: Path) -> None:
    adapter = foreign_adapter(tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))
    with pytest.raises(UserError, match=r"has base_model_name_or_path .*, which is no model's name"):
        source_settings(adapter)


def test_a_file_is_refused_as_the_folder_of_a_derived_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        derive(RunDir(tmp_path / "file"), made_run(tmp_path / "run").root)


@pytest.mark.parametrize("damage", ["adapter", "data"])
def test_a_decoding_that_is_refused_leaves_no_folder_and_the_mended_one_works(
    damage: str, tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, adapter = tmp_path / "deep" / "out", saved_adapter(tiny_gpt2, tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    whole = config.read_text()
    if damage == "adapter":
        config.write_text(json.dumps({**json.loads(whole), "r": 3}))
    data = tmp_path / "none" if damage == "data" else corpus
    few = ("--decode.limit", "2", "--decode.num-beams", "1", "--decode.max-new-tokens", "4", "--device", "cpu")
    command = ["decode", str(adapter), "--out", str(out), *few, "--data.dir"]
    assert main([*command, str(data)]) == 2
    assert ("does not fit the model" if damage == "adapter" else "none") in capsys.readouterr().err
    assert not out.parent.exists()
    config.write_text(whole)
    assert main([*command, str(corpus)]) == 0
    assert len(RunDir(out).outputs_text.read_text().splitlines()) == 2


def saved_adapter(tiny_gpt2: Path, folder: Path) -> Path:
    """An adapter of the tiny GPT-2 in PEFT's layout."""
    settings = replace(IMPROVED, model=ModelSettings(name=str(tiny_gpt2)))
    gpt2, tokenizer = load_model(settings, "fp32")
    folder.mkdir()
    state = {name: parameter.detach() for name, parameter in lora.parameters(gpt2).items()}
    save_adapter(folder, state, settings.lora, identify(gpt2, tokenizer, str(tiny_gpt2)))
    return folder


def test_an_adapter_that_peft_trained_is_decoded_and_reported(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "run"
    tokenizer = load_tokenizer(ModelSettings(name=str(tiny_gpt2)))
    load_base(ModelSettings(name=str(tiny_gpt2)), tokenizer, torch.float32).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(base), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(adapter)
    assert source_settings(adapter).lora == LoraSettings(rank=4, alpha=32, dropout=0.0)

    short = ("--decode.limit", 3, "--decode.num-beams", 1, "--decode.max-new-tokens", 12)
    settings = ("--data.dir", corpus, *short, "--decode.no-repeat-ngram-size", 0)
    assert call_here("decode", adapter, "--out", out, *settings) == 0
    rows = [json.loads(line) for line in (out / "decode" / "outputs.jsonl").read_text().splitlines()]
    for row in rows:
        prompt = tokenizer(f"{row['mr']} <|ref|>", return_tensors="pt")
        made = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        generated = made[0, prompt.input_ids.shape[1] :]
        expected = tokenizer.decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert row["text"] == one_line(expected)
    assert len(rows) == 3
    assert call_here("report", out) == 0
    assert "trained elsewhere with unknown settings" in (out / "report.md").read_text()
    capsys.readouterr()
    assert call_here("decode", adapter, *settings) == 2
    assert capsys.readouterr().err.count("add --out RUN") == 1
