"""One GPU compared with the CPU: the same training, sentences and strategies, and the memory that `plan` predicts."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import assert_same_training, attempt, complete_checkpoints, launcher, train_arguments
from safetensors.torch import load_file
from transformers import GenerationConfig, GPT2LMHeadModel

from lora_dist.bench.models import save_model
from lora_dist.cli.main import main
from lora_dist.config import DataSettings, DecodeSettings, ModelSettings
from lora_dist.data.e2e import group_by_mr, load_split
from lora_dist.data.synthetic import write_corpus
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import beam_search
from lora_dist.decoding.kv_cache import lay_out
from lora_dist.model.base import load_base, load_tokenizer
from lora_dist.run_dir import RunDir

pytestmark = [
    pytest.mark.launched,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DROPOUT = ("--model.dropout", "0.1", "--lora.dropout", "0.1")


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """6 steps, the last of an epoch with one example; no dropout, as each device draws its own."""
    corpus = tmp_path_factory.mktemp("gpu") / "corpus"
    write_corpus(corpus, seed=2, num_train_mrs=12)
    return [*map(str, train_arguments(tiny_gpt2, corpus)), "--train.keep-checkpoints", "9"]


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in fp32: without a launcher the command would choose bf16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def train(folder: Path, device: str, arguments: list[str], *others: str) -> RunDir:
    run = RunDir(folder)
    assert main(["train", *arguments, *others, "--device", device, "--out", str(run.root)]) == 0
    return run


def weights(run: RunDir) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def losses(run: RunDir) -> list[float]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [row[key] for row in rows for key in ("loss", "dev_loss") if key in row]


@pytest.mark.parametrize("way", [(), ("--train.gradient-checkpointing",), ("--train.refs-per-mr", "4")])
def test_a_gpu_trains_what_a_cpu_trains(way: tuple[str, ...], arguments: list[str], tmp_path: Path) -> None:
    gpu, cpu = (train(tmp_path / device, device, arguments, *way) for device in ("cuda", "cpu"))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=1e-4)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (gpu, cpu))
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).norm() < 1e-3 * tensor.norm()


def test_scoring_the_dev_set_changes_no_bit_of_a_training_on_a_gpu(arguments: list[str], tmp_path: Path) -> None:
    scored = ("--train.score-dev", "epoch", "--decode.num-beams", "2", "--decode.max-new-tokens", "8")
    plain = train(tmp_path / "plain", "cuda", arguments, *DROPOUT)
    run = train(tmp_path / "scored", "cuda", arguments, *DROPOUT, *scored)
    assert weights(run) == weights(plain)
    assert losses(run) == losses(plain)


def test_a_gpu_learns_in_bf16_what_it_learns_in_fp32(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp32 = train(tmp_path / "fp32", "cuda", arguments)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    bf16 = train(tmp_path / "bf16", "cuda", arguments)
    assert losses(bf16) == pytest.approx(losses(fp32), rel=0.02)
    assert losses(bf16) != losses(fp32)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_on_a_gpu_repeats_and_resumes_to_the_bit(
    precision: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    whole = train(tmp_path / "whole", "cuda", arguments, *DROPOUT)
    again = train(tmp_path / "again", "cuda", arguments, *DROPOUT)
    assert weights(again) == weights(whole)
    cut_short(again)
    train(again.root, "cuda", arguments, *DROPOUT, "--resume")
    assert weights(again) == weights(whole)
    assert losses(again) == losses(whole)


@pytest.mark.parametrize("config", ["zero1.yaml", "zero2.yaml", "zero3.yaml", "zero3_offload.yaml"])
def test_zero_resumes_on_a_gpu(config: str, arguments: list[str], tmp_path: Path) -> None:
    def launch(run: Path, *others: str) -> None:
        command = ["train", *arguments, *others, "--device", "cuda", "--out", str(run)]
        done = attempt(*command, launcher=launcher(config, 1), CUDA_VISIBLE_DEVICES="0")
        assert done.returncode == 0, done.stderr

    whole, again = tmp_path / "whole", tmp_path / "again"
    launch(whole)
    shutil.copytree(whole, again)
    cut_short(RunDir(again))
    launch(again, "--resume")
    assert_same_training(again, whole)


def cut_short(run: RunDir) -> None:
    """Leave what a kill between the second and the fourth step would leave."""
    shutil.rmtree(run.adapter)
    for step in complete_checkpoints(run):
        if step > 2:
            (run.checkpoint(step) / "COMPLETE").unlink()


def test_a_gpu_decodes_what_a_cpu_decodes(arguments: list[str], tmp_path: Path) -> None:
    run = train(tmp_path / "cpu", "cpu", arguments)
    other = RunDir(tmp_path / "cuda")
    shutil.copytree(run.root, other.root)
    for each, device in ((run, "cpu"), (other, "cuda")):
        assert main(["decode", str(each.root), "--device", device]) == 0
    assert other.outputs_text.read_text() == run.outputs_text.read_text()
    ours, theirs = (
        [json.loads(line)["score"] for line in each.outputs.read_text().splitlines()] for each in (other, run)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("early_stopping", ["true", "never"])
def test_scope_all_is_transformers_generate_on_a_gpu(early_stopping: str, shared: Path) -> None:
    model_settings = ModelSettings(name=str(shared / "mini-gpt2"))
    tokenizer = load_tokenizer(model_settings)
    gpt2 = load_base(model_settings, tokenizer, torch.float32).cuda().eval()
    mrs = [group.mr for group in group_by_mr(load_split(DataSettings(dir=shared / "e2e"), "test"))][::40]
    prompts, eos = encode_prompts(tokenizer, mrs), tokenizer.eos_token_id
    settings = DecodeSettings(ngram_scope="all", early_stopping=early_stopping, max_new_tokens=40)  # type: ignore[arg-type]
    config = GenerationConfig(
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        early_stopping={"true": True, "never": "never"}[early_stopping],
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    expected = [generate(gpt2, prompt, config) for prompt in prompts]
    model = lay_out(gpt2)
    found = beam_search(model, prompts, settings, eos)
    assert [sentences[0].tokens for sentences in found] == expected
    assert beam_search(replace(model, captured=False), prompts, settings, eos) == found  # to the bit


def generate(gpt2: GPT2LMHeadModel, prompt: list[int], config: GenerationConfig) -> list[int]:
    ids = torch.tensor([prompt], device=gpt2.device)
    generated = gpt2.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    row: list[int] = generated[0, len(prompt) :].tolist()
    return row[: row.index(config.eos_token_id)] if config.eos_token_id in row else row


def test_every_strategy_on_one_gpu_is_the_same_training(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["verify", "--model", str(tiny_gpt2), "--processes", "1", "--accumulation", "2"])
    table = capsys.readouterr().out
    assert code == 0, table
    assert re.search(r"\b(\d+) of \1 are the same", table)
    assert "single, 1 x 1, 3 together, captured" in table


@pytest.mark.shared
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["baseline", "improved"])
def test_a_training_uses_the_gpu_memory_planned(
    preset: str, precision: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", {"fp32": "no", "bf16": "bf16"}[precision])
    base, file = tmp_path / "small", tmp_path / "plan.json"
    save_model(ModelSettings(name=str(shared / "mini-gpt2")), "small", base)
    settings = [preset, "--model.name", str(base), "--data.dir", str(shared / "e2e"), "--train.max-steps", "6"]
    settings += ["--data.limit-train", "400"]
    assert main(["plan", *settings, "--device", "cuda", "--precision", precision, "--json", str(file)]) == 0
    planned = json.loads(file.read_text())["memory"]["single"]["total"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(tmp_path / "run", "cuda", settings)
    measured = torch.cuda.max_memory_allocated() - before
    print(f"{preset} {precision}: planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert planned == pytest.approx(measured, rel=0.15)
