"""Runs made from an existing adapter: to decode it with other settings, or because PEFT trained it."""

import json
from pathlib import Path

import peft
import pytest
import torch
from launching import call_here
from made_runs import made_run
from transformers import GPT2LMHeadModel

from lora_dist.config import IMPROVED, LoraSettings, ModelSettings
from lora_dist.config_io import read_settings
from lora_dist.data.e2e import one_line
from lora_dist.decoding.derived_run import derive_run, source_settings
from lora_dist.errors import UserError
from lora_dist.model.base import load_base, load_tokenizer
from lora_dist.run_dir import RunDir


def test_a_derived_run_has_the_adapter_the_log_and_the_new_settings(tmp_path: Path) -> None:
    run, derived = made_run(tmp_path / "run"), RunDir(tmp_path / "derived")
    settings = source_settings(run.root, derived.root)
    assert settings == IMPROVED
    derive_run(derived, run.root, settings)
    assert read_settings(derived) == settings
    assert derived.metrics.read_bytes() == run.metrics.read_bytes()
    assert [p.read_bytes() for p in derived.adapter.iterdir()] == [p.read_bytes() for p in run.adapter.iterdir()]
    derive_run(derived, run.root, settings)  # again, as after a kill


def test_no_other_run_is_overwritten_by_a_derived_one(tmp_path: Path) -> None:
    run, other = made_run(tmp_path / "run"), made_run(tmp_path / "other")
    for target in (other, run):
        target.checkpoints.mkdir(exist_ok=True)
    for folder in (other.root, run.root):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match="is no copy of"):
            derive_run(RunDir(folder), run.root, IMPROVED)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_file_is_refused_as_the_folder_of_a_derived_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        derive_run(RunDir(tmp_path / "file"), made_run(tmp_path / "run").root, IMPROVED)


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
    assert source_settings(adapter, out).lora == LoraSettings(rank=4, alpha=32, dropout=0.0)

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
