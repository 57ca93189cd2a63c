import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import train_arguments
from transformers import AutoTokenizer, GPT2LMHeadModel

from lora_dist.cli.main import main
from lora_dist.config import DecodeSettings
from lora_dist.config_io import read_settings
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.decode import batch_tokens, chunks, load_decoder
from lora_dist.decoding.kv_cache import lay_out
from lora_dist.model.kernels import cpu, cuda
from lora_dist.run_dir import RunDir

MRS = ["name[The Eagle], food[French]", "name[Blue Spice]"]


@pytest.mark.parametrize("size", [1, 40, 100, 1000])
@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_chunks_hold_each_prompt_once_longest_first_and_no_more_tokens_than_allowed(count: int, size: int) -> None:
    lengths = [random.Random(count).randint(3, 30) for _ in range(count)]
    found = chunks(lengths, 10, size)
    assert sorted(index for chunk in found for index in chunk) == list(range(count))
    assert [lengths[i] for chunk in found for i in chunk] == sorted(lengths, reverse=True)
    for chunk in found:
        assert len(chunk) == 1 or len(chunk) * (max(lengths[i] for i in chunk) + 10) <= size
    for chunk in found[:-1]:  # and as many as fit
        assert (len(chunk) + 1) * (lengths[chunk[0]] + 10) > size


def test_batch_tokens_are_as_set_or_what_fits_into_a_quarter_of_the_free_memory(
    gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lay_out(gpt2)
    assert batch_tokens(model, DecodeSettings(batch_tokens=77), 2) == 77
    bytes_per_token = 2 * gpt2.config.n_layer * gpt2.config.n_embd * 4
    for kernels, free, processes, expected in (
        (cpu, 2**60, 1, 2**14),
        (cpu, 4 * 1000 * bytes_per_token, 1, 512),
        (cpu, 4000 * bytes_per_token, 4, 128),  # the processes share the memory
        (cuda, 2**60, 1, 2**16),
        (cuda, 4000 * bytes_per_token, 4, 512),  # each has its own
    ):
        monkeypatch.setattr("lora_dist.decoding.decode.free_memory", lambda _, free=free: free)
        assert batch_tokens(replace(model, kernels=kernels), DecodeSettings(), processes) == expected


@pytest.fixture(scope="module")
def run(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("decode") / "run"
    assert main([str(part) for part in ("train", *train_arguments(tiny_gpt2, corpus), "--out", out)]) == 0
    return out


def test_generate_prints_the_best_sentence_of_each_mr_or_several(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    command = ["generate", str(run), *MRS, "--device", "cpu", "--decode.max-new-tokens", "9"]
    assert main(command) == 0
    best = capsys.readouterr().out.splitlines()
    assert len(best) == 2
    assert main([*command, "--decode.num-return", "3"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in rows[::3]] == best
    for first in (0, 3):
        scores = [float(score) for score, _ in rows[first : first + 3]]
        assert scores == sorted(scores, reverse=True)
        assert len({text for _, text in rows[first : first + 3]}) == 3
    assert main(["generate", str(run)]) == 2
    assert "needs a meaning representation" in capsys.readouterr().err


def test_a_merged_model_generates_in_transformers_what_the_run_generates(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err
    settings = read_settings(RunDir(run))
    settings = replace(settings, decode=DecodeSettings(max_new_tokens=9, ngram_scope="all"))
    decoder = load_decoder(settings, RunDir(run).adapter, torch.device("cpu"))
    merged, their_tokenizer = (kind.from_pretrained(tmp_path / "merged") for kind in (GPT2LMHeadModel, AutoTokenizer))
    found = decoder.sentences(encode_prompts(decoder.tokenizer, MRS))
    for mr, [(ours, _)] in zip(MRS, found, strict=True):
        prompt = their_tokenizer(f"{mr} <|ref|>", return_tensors="pt")
        row = merged.generate(
            **prompt,
            num_beams=10,
            length_penalty=0.9,
            no_repeat_ngram_size=4,
            early_stopping=True,
            max_new_tokens=9,
            pad_token_id=0,
        )[0, prompt.input_ids.shape[1] :]
        assert their_tokenizer.decode(row, skip_special_tokens=True).strip() == ours
