import random
from pathlib import Path

import pytest
import torch
from launching import recipe
from transformers import AutoTokenizer, GPT2LMHeadModel

from lora_dist.cli.main import main
from lora_dist.config import DecodeSettings
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import _best_words, beam_search
from lora_dist.decoding.decode import batch_tokens, chunks, load_for_decoding, to_text
from lora_dist.run_dir import RunDir

MRS = ["name[The Eagle], food[French]", "name[Blue Spice]"]


@pytest.mark.parametrize("size", [1, 40, 100, 1000])
@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_chunks_hold_each_prompt_once_longest_first_and_no_more_tokens_than_asked(count: int, size: int) -> None:
    lengths = [random.Random(count).randint(3, 30) for _ in range(count)]
    found = chunks(lengths, 10, size)
    assert sorted(index for chunk in found for index in chunk) == list(range(count))
    assert [lengths[i] for chunk in found for i in chunk] == sorted(lengths, reverse=True)
    for chunk in found:
        assert len(chunk) == 1 or len(chunk) * (max(lengths[i] for i in chunk) + 10) <= size
    for chunk in found[:-1]:  # and as many as fit
        assert (len(chunk) + 1) * (lengths[chunk[0]] + 10) > size


def test_batch_size_is_as_set_or_what_fits(gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_tokens(gpt2, DecodeSettings(batch_tokens=77), 2) == 77
    bytes_a_token = 2 * gpt2.config.n_layer * gpt2.config.n_embd * 4
    for free, processes, expected in (
        (2**60, 1, 2**14),
        (4 * 1000 * bytes_a_token, 1, 512),
        (4000 * bytes_a_token, 4, 128),
    ):
        monkeypatch.setattr("lora_dist.decoding.decode.free_memory", lambda _, free=free: free)
        assert batch_tokens(gpt2, DecodeSettings(), processes) == expected


@pytest.mark.parametrize("vocabulary", [3, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_words_are_those_of_a_full_log_softmax(vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocabulary)
    logits, count = torch.randn(7, vocabulary).mul_(4).to(dtype), min(20, vocabulary - 1)
    words, banned = torch.randint(vocabulary, (7, 5)), torch.rand(7, 5) < 0.5
    expected = logits.double().log_softmax(-1)
    for row, (some, bans) in enumerate(zip(words, banned, strict=True)):
        expected[row, some[bans]] = -torch.inf
    best, found = _best_words(logits, words, banned, count)
    torch.testing.assert_close(best.double(), expected.topk(count).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expected.gather(1, found), best.double(), rtol=1e-5, atol=1e-5)
    assert all(len(set(row.tolist())) == count for row in found)


@pytest.fixture(scope="module")
def run(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("decode") / "run"
    assert main([str(part) for part in ("train", *recipe(tiny_gpt2, corpus), "--out", out)]) == 0
    return out


def test_generate_prints_a_sentence_for_each_or_the_best_few(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_merged_model_says_in_transformers_what_the_run_says(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err
    settings = DecodeSettings(max_new_tokens=9, ngram_scope="all")
    loaded = RunDir(run).settings()
    model, tokenizer = load_for_decoding(loaded, RunDir(run).adapter, torch.device("cpu"))
    merged, their_tokenizer = (kind.from_pretrained(tmp_path / "merged") for kind in (GPT2LMHeadModel, AutoTokenizer))
    for mr, (ours, *_) in zip(MRS, beam_search(model, encode_prompts(tokenizer, MRS), settings, 0), strict=True):
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
        assert their_tokenizer.decode(row, skip_special_tokens=True).strip() == to_text(tokenizer, ours)
