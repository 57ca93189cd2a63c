"""The plan of a training compared with trainings: counts, schedule, memory and communication; and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TIMEOUT, complete_checkpoints, launcher
from transformers import GPT2Config, GPT2LMHeadModel

from lora_dist.cli.main import main
from lora_dist.config import LoraSettings
from lora_dist.data.collate import Batch
from lora_dist.data.shapes import BatchShape
from lora_dist.distributed.compat import cpu_has_bf16
from lora_dist.model import lora
from lora_dist.planning.memory import LIBRARIES
from lora_dist.presets import PRESETS
from lora_dist.run_dir import RunDir
from lora_dist.training.strategy import TrainingStrategy

SIZES: dict[str, dict[str, int]] = {"small": {}, "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}


def make_plan(preset: str, *arguments: object, file: Path) -> dict[str, Any]:
    assert main(["plan", preset, *map(str, arguments), "--device", "cpu", "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def save_base(folder: Path, tokenizer: Path, **shape: int) -> Path:
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize(("preset", "settings"), [(name, preset.settings.lora) for name, preset in PRESETS.items()])
def test_counts_are_those_of_the_model_itself_and_of_the_paper(
    size: str, preset: str, settings: LoraSettings, corpus: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    GPT2Config(**SIZES[size]).save_pretrained(tmp_path)
    for file in tiny_gpt2.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    planned = make_plan(preset, "--model.name", tmp_path, "--data.dir", corpus, file=tmp_path / "plan.json")
    paper = {
        ("small", "baseline"): 147_456,
        ("small", "improved"): 2_359_296,
        ("small", "original"): 147_456,
        ("medium", "baseline"): 393_216,
        ("medium", "original"): 393_216,
        ("medium", "improved"): 6_291_456,
    }
    assert planned["trainable"] == paper[size, preset]
    if size == "small":
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config())
        frozen = sum(parameter.numel() for parameter in model.parameters())
        lora.inject(model, settings, seed=0)
        assert planned["trainable"] == lora.expected_count(model, settings)
        assert planned["frozen"] == frozen


def test_a_training_does_what_was_planned(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[BatchShape] = []

    def watched(strategy: TrainingStrategy, batch: Batch, **how: Any) -> torch.Tensor:
        met.append(batch.shape)
        return original(strategy, batch, **how)

    original = TrainingStrategy.backward
    monkeypatch.setattr(TrainingStrategy, "backward", watched)
    run = RunDir(tmp_path / "run")
    settings = [
        *("--model.name", tiny_gpt2, "--data.dir", corpus, "--data.limit-train", 29, "--train.max-steps", 10),
        *("--train.warmup-steps", 4, "--train.log-steps", 1, "--train.checkpoint-steps", 3),
        *("--train.accumulation-steps", 2),
    ]
    planned = make_plan("improved", *settings, file=tmp_path / "plan.json")
    assert main(["train", "improved", *map(str, settings), "--device", "cpu", "--out", str(run.root)]) == 0
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    schedule = planned["schedule"]
    assert (planned["corpus"]["examples"], schedule["steps_per_epoch"], schedule["steps"]) == (29, 4, 10)
    assert schedule["dev_evaluations"] == sum("dev_loss" in row for row in rows) == 3
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert [step for step, _ in schedule["learning_rates"]] == [1, 3, 5, 8, 10]
    assert dict(schedule["learning_rates"]) == {step: rates[step] for step, _ in schedule["learning_rates"]}
    kept = complete_checkpoints(run)
    assert (schedule["checkpoints"], kept[-1], len(kept)) == (4, 10, schedule["checkpoints_kept"])
    size = sum(file.stat().st_size for file in run.checkpoint(10).iterdir())
    assert 0 < size - schedule["checkpoint_bytes"] < 20_000  # names and shapes, the settings
    largest = BatchShape(**planned["corpus"]["largest"])
    assert largest in met
    assert not any(other.tokens > largest.tokens and other.labels > largest.labels for other in met)


# By default, test_memory.py compares the planned memory of a step with what autograd saves and the allocator counts.
@pytest.mark.launched
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("preset", "precision", "steps"),
    [("baseline", "fp32", 4), ("improved", "fp32", 12), ("baseline", "bf16", 12), ("improved", "bf16", 12)],
)
def test_a_training_uses_the_memory_planned(
    preset: str, precision: str, steps: int, shared: Path, tmp_path: Path
) -> None:
    planned, measured = plan_and_measure(preset, precision, steps, shared, tmp_path)
    assert planned["memory"]["single"]["total"] - LIBRARIES == pytest.approx(used(measured), rel=0.15)


@pytest.mark.launched
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "zero3_offload"])
def test_two_processes_use_the_memory_and_send_the_bytes_planned(strategy: str, shared: Path, tmp_path: Path) -> None:
    planned, measured = plan_and_measure("improved", "bf16", 6, shared, tmp_path, strategy)
    assert planned["memory"][strategy]["total"] - LIBRARIES == pytest.approx(used(measured), rel=0.15)
    if strategy != "ddp":  # torch's reducer sends from C++, where a test cannot count
        # Of two processes, each sends half. The rest are checks for overflow and the like.
        assert planned["sent"][strategy] == pytest.approx(measured["sent"] / 2, rel=0.01)


def used(measured: dict[str, int]) -> int:
    return measured["peak"] - measured["imported"]


def plan_and_measure(
    preset: str, precision: str, steps: int, shared: Path, folder: Path, strategy: str = "single"
) -> tuple[dict[str, Any], dict[str, int]]:
    """The plan, and what rank 0 used, for some steps with GPT-2 Small's shape on E2E."""
    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("needs a CPU with bf16")
    base = save_base(folder / "small", shared / "mini-gpt2")
    corpus = folder / "e2e"
    corpus.mkdir()
    shutil.copy(shared / "e2e" / "trainset.csv", corpus)
    dev = (shared / "e2e" / "devset.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (corpus / "devset.csv").write_text("".join(dev[:30]), encoding="utf-8")
    processes = 1 if strategy == "single" else 2
    settings = ["--model.name", base, "--data.dir", corpus, "--train.max-steps", steps]
    world = ["--processes", processes, "--precision", precision]
    planned = make_plan(preset, *settings, *world, file=folder / "plan.json")
    start = [] if strategy == "single" else ["-m", *launcher(f"{strategy}.yaml", processes)]
    if start:
        start[start.index("--mixed_precision") + 1] = "no" if precision == "fp32" else precision
    training = [preset, *settings, "--device", "cpu", "--out", folder / "run"]
    result = subprocess.run(
        [sys.executable, *start, str(Path(__file__).resolve().parents[1] / "peak.py"), *map(str, training)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_MIXED_PRECISION": "no" if precision == "fp32" else precision,
        },
    )
    measured: dict[str, int] = json.loads(next(x for x in result.stdout.splitlines() if x.startswith('{"imported"')))
    return planned, measured


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--processes", 3], "--train.global-batch-size is 8: it does not divide among 3 processes x 1"),
        (["--processes", 2, "--train.accumulation-steps", 8], "does not divide among 2 processes x 8"),
        (["--processes", 0], "--processes is 0: must be >= 1"),
        (["--lora.targets", "q_proj"], "--lora.targets q_proj matches no layer"),
        (["--decode.max-new-tokens", 500], "--decode.max-new-tokens is 500: after a prompt of"),
        (["--model.name", "nobody/no-such-model"], "--model.name nobody/no-such-model cannot be loaded"),
        (["--data.dir", "/no/such/folder"], "--data.dir /no/such/folder is not a folder"),
        (["--memory", 0.1], "GiB (single) and has 0.10: try"),
        (["--memory", 0], "--memory is 0.0: must be > 0 GiB"),
    ],
)
def test_what_cannot_work_is_refused(
    settings: list[object], message: str, tiny_gpt2: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["plan", "baseline", "--model.name", tiny_gpt2, "--data.dir", corpus, "--device", "cpu"]
    assert main([str(argument) for argument in (*start, *settings)]) == 2
    assert message in capsys.readouterr().err


def test_models_that_do_not_fit_are_refused(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    for change, message in (({"n_positions": 32}, "the model takes 32"), ({"model_type": "bert"}, "is a bert model")):
        (tmp_path / "short" / "config.json").write_text(json.dumps({**config, **change}))
        assert main(["plan", "baseline", "--model.name", str(tmp_path / "short"), "--data.dir", str(corpus)]) == 2
        assert message in capsys.readouterr().err


def test_where_corpus_and_model_are_unavailable_the_published_ones_are_planned_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = make_plan("baseline", "--model.name", "gpt2-medium", file=tmp_path / "plan.json")
    assert (planned["trainable"], planned["corpus"]["examples"], planned["schedule"]["steps"]) == (
        393_216,
        42_061,
        26_290,
    )
    text = capsys.readouterr().out
    assert "note: the corpus cannot be read from the hub: name its folder, --data.dir\n" in text
    assert "note: the tokenizer of gpt2-medium cannot be read from the hub: name a folder, --model.name\n" in text
    assert "lengths are those of E2E as published" in text
    assert "5, each on 4,672 examples (--data.limit-dev); together about the time of 973 steps" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.shared
def test_the_published_corpus_has_the_sizes_of_the_real_one(shared: Path, tmp_path: Path) -> None:
    real = make_plan(
        *("improved", "--model.name", shared / "mini-gpt2", "--data.dir", shared / "e2e"), file=tmp_path / "real.json"
    )
    guessed = make_plan("improved", file=tmp_path / "guessed.json")
    assert guessed["corpus"]["examples"] == real["corpus"]["examples"]
    assert guessed["schedule"] == {**real["schedule"], "checkpoint_bytes": guessed["schedule"]["checkpoint_bytes"]}
    assert guessed["corpus"]["largest"]["tokens"] == pytest.approx(real["corpus"]["largest"]["tokens"], rel=0.1)
    assert guessed["corpus"]["tokens"] == pytest.approx(real["corpus"]["tokens"], rel=0.1)


def test_only_what_is_unavailable_is_named_and_the_dev_loss_is_that_of_the_first_examples(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    half = make_plan("baseline", "--data.dir", corpus, "--train.warmup-steps", 2, file=tmp_path / "plan.json")
    assert [note.split(" cannot")[0] for note in half["notes"][:-1]] == ["the tokenizer of gpt2"]
    settings = ["--data.dir", corpus, "--model.name", tiny_gpt2, "--train.epochs", 8]
    whole = make_plan("baseline", *settings, file=tmp_path / "plan.json")
    few = make_plan("baseline", *settings, "--data.limit-dev", 3, file=tmp_path / "plan.json")
    assert whole["corpus"]["dev_examples"] == half["corpus"]["dev_examples"] > few["corpus"]["dev_examples"] == 3
    assert few["schedule"]["dev_steps"] == 1 < whole["schedule"]["dev_steps"]  # 8 x 3 examples, a third of a step of 8
    assert few["corpus"]["largest_dev"]["rows"] == 3


def test_a_warm_up_that_never_ends_is_noted(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--model.name", tiny_gpt2, "--data.dir", corpus, "--train.max-steps", 7]
    planned = make_plan("baseline", *settings, "--train.warmup-steps", 7, file=tmp_path / "plan.json")
    assert "the learning rate never reaches 0.0002" in planned["notes"][0]
    assert planned["notes"][0] in capsys.readouterr().out
    assert make_plan("baseline", *settings, "--train.warmup-steps", 6, file=tmp_path / "plan.json")["notes"] == []
