"""The real commands under the real launcher, in several processes over gloo, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_dist.demo_corpus import write_corpus

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "accelerate_configs"
TIMEOUT = 240  # seconds for one launch


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "corpus"
    write_corpus(folder, seed=1, num_train_mrs=12)
    return folder


def lora_dist(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of the package, under `launcher` if there is one, and require that it works."""
    result = attempt(*arguments, launcher=launcher)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def attempt(*arguments: object, launcher: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    # In fp32 also without a launcher; and its own choice of threads would differ between one process and several.
    common = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_MIXED_PRECISION": "no"}
    environment = {**os.environ, **common, **variables}
    start = [sys.executable, "-m", *launcher, "-m", "lora_dist"] if launcher else [sys.executable, "-m", "lora_dist"]
    return subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
    )


def launcher(config: str, processes: int | None = None) -> tuple[str, ...]:
    """accelerate launch with one of the shipped configs, in fp32."""
    count = () if processes is None else ("--num_processes", str(processes))
    return ("accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--mixed_precision", "no", *count)


def recipe(base: Path, corpus: Path) -> list[object]:
    """17 examples in global batches of 8: the last has one, so the second of two ranks has none. No dropout."""
    return [
        *("improved", "--model.name", base, "--data.dir", corpus, "--data.limit-train", 17, "--device", "cpu"),
        *("--train.epochs", 2, "--train.learning-rate", 1e-2, "--train.warmup-steps", 2, "--train.log-steps", 1),
        *("--train.checkpoint-steps", 2, "--train.max-grad-norm", 5, "--model.dropout", 0, "--lora.dropout", 0),
    ]


@pytest.fixture(scope="module")
def reference(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process without a launcher."""
    out = tmp_path_factory.mktemp("reference") / "run"
    lora_dist("train", *recipe(tiny_gpt2, corpus), "--out", out)
    return out


def metrics(run: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def adapter(run: Path) -> torch.Tensor:
    """All trained numbers in one vector, in the order of their names."""
    state = load_file(run / "adapter" / "adapter_model.safetensors")
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def assert_same_training(run: Path, other: Path) -> None:
    assert metrics(run, "step") == metrics(other, "step")
    assert metrics(run, "lr") == metrics(other, "lr")
    assert metrics(run, "loss") == pytest.approx(metrics(other, "loss"), rel=1e-5)
    assert metrics(run, "dev_loss") == pytest.approx(metrics(other, "dev_loss"), rel=1e-5)
    difference = (adapter(run) - adapter(other)).norm() / adapter(other).norm()
    assert difference < 1e-5


@pytest.mark.parametrize("config", ["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload"])
def test_every_config_trains_what_one_process_trains(
    config: str, tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lora_dist("train", *recipe(tiny_gpt2, corpus), "--out", out, launcher=launcher(f"{config}.yaml"))
    world = json.loads((out / "config.json").read_text())["world"]
    strategy = config.removesuffix("_offload")
    assert (world["strategy"], world["processes"]) == (strategy, 1 if config == "single" else 2)
    assert_same_training(out, reference)


def test_torchrun_without_any_flag_joins_its_processes_and_accumulation_changes_nothing(
    tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    torchrun = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    extra = ("--train.accumulation-steps", 2, "--out", out)
    result = attempt("train", *recipe(tiny_gpt2, corpus), *extra, launcher=torchrun)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "config.json").read_text())["world"]["processes"] == 2
    assert_same_training(out, reference)


def test_a_checkpoint_of_one_process_goes_on_under_another_strategy(
    tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lora_dist("train", *recipe(tiny_gpt2, corpus), "--train.keep-checkpoints", 9, "--out", out)
    for step in (4, 6):
        (out / "checkpoints" / f"step-{step:06d}" / "COMPLETE").unlink()
    (out / "adapter" / "adapter_model.safetensors").unlink()
    lora_dist("train", *recipe(tiny_gpt2, corpus), "--out", out, "--resume", launcher=launcher("zero2.yaml"))
    assert_same_training(out, reference)


def test_run_in_two_processes_leaves_every_file_and_decodes_the_same_bytes_as_one_and_three(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--decode.num-beams", 3, "--decode.max-new-tokens", 12, "--decode.batch-tokens", 250]
    settings += ["--decode.num-return", 2, "--decode.limit", 11]
    lora_dist("run", *recipe(tiny_gpt2, corpus), *settings, "--out", out, launcher=launcher("ddp.yaml"))
    names = ["config.json", "metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    names += ["checkpoints/step-000006/COMPLETE", "decode/outputs.jsonl", "decode/outputs.txt", "decode/references.txt"]
    names += ["scores.json", "report.md", "report.html"]
    assert [name for name in names if not (out / name).is_file()] == []
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores) == ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "slot_error_rate", "signature"]
    two = (out / "decode" / "outputs.jsonl").read_bytes()
    rows = [json.loads(line) for line in two.splitlines()]
    assert [row["index"] for row in rows] == list(range(11))
    assert all(row["score"] >= other["score"] for row in rows for other in row["alternatives"])
    for processes in (1, 3, 7):
        for file in (out / "decode" / "ledger").iterdir():
            file.unlink()
        start = launcher("ddp.yaml", processes) if processes > 1 else ()
        lora_dist("decode", out, "--device", "cpu", launcher=start)
        assert (out / "decode" / "outputs.jsonl").read_bytes() == two


def test_copies_that_do_not_know_of_each_other_are_refused(tmp_path: Path) -> None:
    result = attempt("train", "improved", "--out", tmp_path / "run", SLURM_STEP_NUM_TASKS="4")
    assert result.returncode == 2
    assert "4 copies" in result.stderr
    assert "launch/multi_node.slurm" in result.stderr
    assert not (tmp_path / "run").exists()
