import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import train_arguments
from transformers import AutoTokenizer, GPT2LMHeadModel

from lora_dist.cli.main import main
from lora_dist.config import DecodeSettings
from lora_dist.config_io import read_settings
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import beam_search
from lora_dist.decoding.decoder import load_decoder
from lora_dist.decoding.kv_cache import lay_out
from lora_dist.decoding.shard import chunk_tokens, chunks, smaller_chunk_tokens
from lora_dist.errors import UserError
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.select import Kernels
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


@pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
def test_the_tokens_of_a_chunk_are_as_set_or_a_constant_of_the_kind_of_device(
    gpt2: GPT2LMHeadModel, kernels: Kernels
) -> None:
    model = replace(lay_out(gpt2), kernels=kernels)
    asked = [[1, 2, 3]] * 4000
    for memory in (None, 2**40):
        assert chunk_tokens(DecodeSettings(batch_tokens=77), model, asked, memory) == 77
        assert chunk_tokens(DecodeSettings(), model, asked, memory) == kernels.CHUNK_TOKENS > 10_000


@pytest.fixture(scope="module")
def run(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("decode") / "run"
    assert main([str(part) for part in ("train", *train_arguments(tiny_gpt2, corpus), "--out", out)]) == 0
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be decoded."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def decode(folder: Path, *settings: str) -> dict[str, Any]:
    """Decode four MRs and return the signature."""
    few = ("--decode.limit", "4", "--decode.num-beams", "2", "--decode.max-new-tokens", "6", "--device", "cpu")
    assert main(["decode", str(folder), *few, *settings]) == 0
    found: dict[str, Any] = json.loads(RunDir(folder).decode_signature.read_text())
    return found


def test_the_signature_has_the_kind_of_device_and_the_resolved_size_of_a_chunk(copy: Path) -> None:
    signature = decode(copy)
    assert signature["decode"]["batch_tokens"] is None
    assert (signature["device"], signature["chunk_tokens"]) == ("cpu", cpu.CHUNK_TOKENS)
    assert decode(copy, "--decode.batch-tokens", "50")["chunk_tokens"] == 50


def test_a_ledger_under_another_size_of_a_chunk_is_not_mixed_in(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the settings are the same, as in a version of this package with another constant."""
    decode(copy)
    run = RunDir(copy)
    lines = run.ledger(0).read_text().splitlines()
    run.ledger(0).write_text("".join(f'[{number}, [["not decoded again", 0.0]]]\n' for number in range(len(lines))))
    decode(copy)
    assert run.outputs_text.read_text().splitlines() == ["not decoded again"] * 4
    monkeypatch.setattr(cpu, "CHUNK_TOKENS", cpu.CHUNK_TOKENS // 2)
    decode(copy)
    assert "not decoded again" not in run.outputs_text.read_text()


def test_a_chunk_that_a_small_gpu_cannot_hold_is_halved_before_it_is_tried(gpt2: GPT2LMHeadModel) -> None:
    model, asked = replace(lay_out(gpt2), kernels=cuda), [[1, 2, 3]] * 4000
    sizes = [chunk_tokens(DecodeSettings(), model, asked, memory) for memory in (2**40, 2**30, 2**27, 1)]
    assert sizes[0] == cuda.CHUNK_TOKENS
    assert sizes == sorted(sizes, reverse=True)
    assert all(cuda.CHUNK_TOKENS % size == 0 for size in sizes)
    assert max(map(len, chunks([3] * 4000, 640, sizes[-1]))) == 1


def test_a_chunk_that_did_not_fit_is_halved_until_it_has_fewer_prompts(caplog: pytest.LogCaptureFixture) -> None:
    settings, asked = DecodeSettings(num_beams=2, max_new_tokens=5), [[1, 2, 3]] * 6
    # 13 tokens per prompt: 4, 2 and 1 at a time instead of all 6
    assert [smaller_chunk_tokens(settings, asked, size) for size in (1024, 64, 32)] == [64, 32, 16]
    with pytest.raises(UserError, match=r"--decode\.num-beams is 2: the device has not enough memory for one"):
        smaller_chunk_tokens(settings, asked, 16)
    assert "out of memory: decoding in chunks of 64 tokens instead of 1024" in caplog.text


class Killed(BaseException):
    """What a kill is to the code that it ends."""


@pytest.mark.parametrize(
    ("interrupted", "error"),
    [
        (False, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        (True, torch.OutOfMemoryError()),
    ],
)
def test_out_of_memory_halves_the_chunks_and_the_signature_says_so(
    interrupted: bool, error: Exception, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted decoding resumes with the halved chunks; the sentences are those of chunks that were set so."""
    expected = decode(copy, "--decode.batch-tokens", "100")
    outputs = RunDir(copy).outputs.read_bytes()
    monkeypatch.setattr(cpu, "CHUNK_TOKENS", 200)
    searched: list[int] = []

    def limited(model: Any, asked: Any, *rest: Any) -> Any:
        searched.append(len(asked))
        if len(asked) > 1:
            raise error
        if interrupted and len(searched) == 5:
            raise Killed
        return beam_search(model, asked, *rest)

    monkeypatch.setattr("lora_dist.decoding.decoder.beam_search", limited)
    if interrupted:
        with pytest.raises(Killed):
            decode(copy)
        searched.clear()
    signature = decode(copy)
    assert signature["chunk_tokens"] == expected["chunk_tokens"] == 100
    assert RunDir(copy).outputs.read_bytes() == outputs
    assert (max(searched) == 1) == interrupted


def test_less_free_memory_and_more_processes_change_no_chunk(
    gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    model = lay_out(gpt2)
    before = chunk_tokens(DecodeSettings(), model, [[1, 2, 3]] * 4000, None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1, total=1, free=1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1, 1))
    monkeypatch.setenv("WORLD_SIZE", "64")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert chunk_tokens(DecodeSettings(), model, [[1, 2, 3]] * 4000, None) == before


def test_run_decodes_as_decode_does_whatever_the_training_set(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search after a training in the same process has the same settings of torch as in a process of its own."""
    found: list[tuple[object, ...]] = []

    def searching(*arguments: Any) -> Any:
        attention = torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
        found.append((torch.are_deterministic_algorithms_enabled(), attention, torch.backends.cudnn.benchmark))
        return beam_search(*arguments)

    monkeypatch.setattr("lora_dist.decoding.decoder.beam_search", searching)
    # First, as it imports `score_run` and would keep the replacement.
    monkeypatch.setattr("lora_dist.report.write.write_report", lambda *_: "")
    monkeypatch.setattr("lora_dist.evaluation.scoring.score_run", lambda _: {})
    monkeypatch.setattr("lora_dist.evaluation.formats.scores_table", lambda _: "")
    few = ("--train.max-steps", "1", "--decode.limit", "4", "--decode.num-beams", "2", "--decode.max-new-tokens", "6")
    arguments = [str(part) for part in (*train_arguments(tiny_gpt2, corpus), *few)]
    assert main(["run", *arguments, "--out", str(tmp_path / "run")]) == 0
    outputs = RunDir(tmp_path / "run").outputs.read_bytes()
    shutil.rmtree(tmp_path / "run" / "decode")
    assert main(["decode", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert RunDir(tmp_path / "run").outputs.read_bytes() == outputs
    assert len(found) == 2
    assert found[0] == found[1]


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


def test_merge_and_generate_take_an_adapter_or_a_checkpoint_as_decode_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = sorted(RunDir(run).checkpoints.iterdir())[-1]
    few, found = ("--device", "cpu", "--decode.max-new-tokens", "9", "--decode.num-return", "3"), []
    for number, source in enumerate((run, RunDir(run).adapter, newest)):
        capsys.readouterr()
        assert main(["generate", str(source), MRS[0], *few]) == 0
        found.append(capsys.readouterr().out)
        assert main(["merge", str(source), str(tmp_path / f"merged-{number}")]) == 0
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].splitlines())) == 3
    weights = [(tmp_path / f"merged-{number}" / "model.safetensors").read_bytes() for number in range(3)]
    assert weights[0] == weights[1] == weights[2]
