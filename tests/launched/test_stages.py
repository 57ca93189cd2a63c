"""The stages joined by files: each alone gives what `run` gives."""

import hashlib
from pathlib import Path

import pytest
from launching import call_here, lora_dist

# By default, tests/decoding/test_decode.py compares them in one process.
pytestmark = [pytest.mark.launched, pytest.mark.slow]
FILES = ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "decode/references.txt", "scores.json")


def test_run_gives_the_bytes_of_train_decode_and_report_in_processes_of_their_own(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    settings = ["improved", "--model.name", tiny_gpt2, "--data.dir", corpus, "--train.max-steps", 6]
    settings += ["--train.warmup-steps", 2, "--train.learning-rate", 1e-2, "--decode.limit", 8]
    together, apart = tmp_path / "together", tmp_path / "apart"
    assert call_here("run", *settings, "--out", together) == 0
    lora_dist("train", *settings, "--out", apart)
    lora_dist("decode", apart)
    lora_dist("report", apart)
    for name in FILES:
        digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (together, apart)]
        assert digests[0] == digests[1], name
