"""GPT-2 Small and Medium at full size, with random weights: they train, and the counts are the paper's."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from lora_dist.cli.main import main

pytestmark = pytest.mark.launched
SIZES = {"small": {}, "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
COUNTS = {
    ("small", "baseline"): 147_456,
    ("small", "improved"): 2_359_296,
    ("small", "original"): 147_456,
    ("medium", "baseline"): 393_216,
    ("medium", "original"): 393_216,
    ("medium", "improved"): 6_291_456,
}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("size", "preset"), list(COUNTS))
def test_both_sizes_train_a_few_steps_with_the_papers_counts(
    size: str, preset: str, shared: Path, tmp_path: Path
) -> None:
    base, run = tmp_path / size, tmp_path / "run"
    GPT2LMHeadModel(GPT2Config(**SIZES[size])).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "mini-gpt2" / name, base)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("trainset.csv", "devset.csv"):
        lines = (shared / "e2e" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (corpus / name).write_text("".join(lines[:25]), encoding="utf-8")
    settings = [
        "--data.dir",
        str(corpus),
        "--train.warmup-steps",
        "0",
        "--train.max-steps",
        "3",
        "--train.log-steps",
        "1",
    ]
    assert main(["train", preset, "--model.name", str(base), *settings, "--device", "cpu", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["counts"]["trainable"] == COUNTS[size, preset]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3
    if preset != "improved":  # B is zero, so the untrained model's loss is that of guessing among 50,258 tokens
        assert losses[0] == pytest.approx(10.9, abs=0.5)
