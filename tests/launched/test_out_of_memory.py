"""Decoding in two processes of which one runs out of memory: both start again with smaller chunks."""

import json
import shutil
from pathlib import Path

import pytest
from launching import attempt, before_all_else, call_here, launcher, train_arguments

from lora_dist.run_dir import RunDir

pytestmark = [pytest.mark.launched, pytest.mark.slow]
RANK_1_HOLDS_ONE_PROMPT = """
import time
import torch
from lora_dist.decoding.decoder import Decoder

sentences = Decoder.sentences

def search(self, prompts):
    if len(prompts) > 1 and os.environ["LOCAL_RANK"] == "1":
        raise torch.OutOfMemoryError
    time.sleep(0.3)  # leave chunks to the other rank
    return sentences(self, prompts)

Decoder.sentences = search
"""


def test_the_sentences_are_those_of_one_process_with_chunks_set_as_small(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert call_here("train", *train_arguments(tiny_gpt2, corpus), "--out", together) == 0
    shutil.copytree(together, alone)
    few = ("--device", "cpu", "--decode.num-beams", 2, "--decode.max-new-tokens", 6, "--decode.batch-tokens")
    limited = before_all_else(tmp_path, RANK_1_HOLDS_ONE_PROMPT)
    done = attempt("decode", together, *few, 200, launcher=launcher("ddp.yaml", 2), **limited)
    assert done.returncode == 0, done.stderr
    size = json.loads(RunDir(together).decode_signature.read_text())["chunk_tokens"]
    assert size < 200
    assert f"out of memory: decoding in chunks of {size} tokens instead of 200" in done.stderr
    assert call_here("decode", alone, *few, size) == 0
    assert RunDir(together).outputs.read_bytes() == RunDir(alone).outputs.read_bytes()
