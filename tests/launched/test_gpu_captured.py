"""Captured steps on GPUs: the bits of eager ones, also when resumed, on one GPU, shared by two ranks, and on two."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
import torch
from launching import assert_same_training, before_all_else, begin, complete_checkpoints, finish, launcher
from launching import train_arguments as short_training
from small_corpus import write_small_corpus
from torch import Tensor

from lora_dist.cli.main import main
from lora_dist.model.kernels import cuda
from lora_dist.run_dir import RunDir

pytestmark = [
    pytest.mark.launched,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS, EVERY = 50, 20
OFF = ("--train.cuda-graphs", "off")
GLOO = """
import torch.distributed as dist
init_process_group = dist.init_process_group
dist.init_process_group = lambda backend, **others: init_process_group("gloo", **others)
"""
"""NCCL refuses two ranks on one GPU."""


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """50 steps with dropout and clipping, three per epoch, the last of which has one example."""
    corpus = tmp_path_factory.mktemp("gpu") / "corpus"
    write_small_corpus(corpus, seed=2, num_train_mrs=12)
    own = ("--train.epochs", 17, "--train.max-steps", STEPS, "--train.checkpoint-steps", EVERY)
    dropout = ("--model.dropout", 0.1, "--lora.dropout", 0.1, "--train.keep-checkpoints", 9)
    settings = [*short_training(tiny_gpt2, corpus), *own, *dropout, "--device", "cuda"]
    return ["train", *map(str, settings)]


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row[key] for row in rows for key in ("loss", "dev_loss") if key in row]
    assert len(found) == STEPS + 17
    return found


def assert_same_bits(run: Path, other: Path) -> None:
    assert losses(run) == losses(other)
    assert weights(run) == weights(other)


def cut_short(run: RunDir) -> None:
    """Leave what a kill after the first checkpoint would leave."""
    shutil.rmtree(run.adapter)
    for step in complete_checkpoints(run)[1:]:
        (run.checkpoint(step) / "COMPLETE").unlink()


# One process


@pytest.mark.parametrize("accumulation", ["1", "2"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_captured_steps_give_the_bits_of_eager_ones_also_when_resumed(
    precision: str,
    accumulation: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    eager, captured = tmp_path / "eager", tmp_path / "captured"

    def train(run: Path, *others: str) -> str:
        assert main([*arguments, "--train.accumulation-steps", accumulation, *others, "--out", str(run)]) == 0
        return capsys.readouterr().err

    assert "steps run eagerly, without CUDA graphs: --train.cuda-graphs is off" in train(eager, *OFF)
    assert re.search(r"captured \d+ CUDA graphs", train(captured))
    assert_same_bits(captured, eager)
    cut_short(RunDir(captured))
    assert re.search(r"captured \d+ CUDA graphs", train(captured, "--resume"))
    assert_same_bits(captured, eager)


def waits_for_the_device(query: Tensor) -> None:
    query.sum().item()


def has_no_memory_left(query: Tensor) -> None:
    query.new_empty(2**50)


@pytest.mark.parametrize("failure", [waits_for_the_device, has_no_memory_left])
def test_a_capture_that_fails_leaves_an_eager_training(
    failure: Callable[[Tensor], None],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    eager, fallen_back = tmp_path / "eager", tmp_path / "run"
    assert main([*arguments, *OFF, "--out", str(eager)]) == 0
    attention = cuda.attention

    def failing(query: Tensor, *others: object) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            failure(query)
        return attention(query, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda, "attention", failing)
    capsys.readouterr()
    assert main([*arguments, "--out", str(fallen_back)]) == 0
    assert capsys.readouterr().err.count("steps run eagerly, as capturing CUDA graphs failed: ") == 1
    assert_same_bits(fallen_back, eager)


# Under a launcher


def launch(config: str, processes: int, arguments: list[str], out: Path, *others: str) -> list[Popen[str]]:
    """Start a training over NCCL, with a GPU for each process."""
    gpus = ",".join(map(str, range(processes)))
    command = [*arguments, *others, "--out", str(out)]
    return [begin(*command, launcher=launcher(config, processes), CUDA_VISIBLE_DEVICES=gpus)]


def printed(launched: list[Popen[str]]) -> str:
    """Wait for a training, and return what rank 0 prints."""
    results = [finish(process) for process in launched]
    assert not any(done.returncode for done in results), "".join(done.stderr for done in results)
    return results[0].stderr


@pytest.mark.parametrize("config", ["ddp.yaml", "zero1.yaml", "zero2.yaml"])
@pytest.mark.parametrize("processes", [1, 2])
def test_captured_ranks_over_nccl_give_the_bits_of_eager_ones_also_when_resumed(
    processes: int, config: str, arguments: list[str], tmp_path: Path
) -> None:
    if processes > torch.cuda.device_count():
        pytest.skip(f"needs {processes} CUDA devices")
    eager, captured = tmp_path / "eager", tmp_path / "captured"
    settings = [*arguments, "--train.accumulation-steps", "2"]
    both = [launch(config, processes, settings, eager, *OFF), launch(config, processes, settings, captured)]
    _, of_captured = map(printed, both)
    assert re.search(r"captured \d+ CUDA graphs", of_captured)
    assert_same_bits(captured, eager)
    cut_short(RunDir(captured))
    printed(launch(config, processes, settings, captured, "--resume"))
    assert_same_bits(captured, eager)


def share(config: str, arguments: list[str], out: Path, *others: str) -> list[Popen[str]]:
    """Start a training in two processes that share one GPU over gloo, as if on two machines."""
    (first := out.with_name(f"{out.name}-first")).mkdir()
    variables = {**before_all_else(first, GLOO), "CUDA_VISIBLE_DEVICES": "0"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port))
    return [
        begin(
            *(*arguments, *others, "--out", out),
            launcher=(*launcher(config, 2), *machines, "--machine_rank", str(rank)),
            **variables,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("config", ["ddp.yaml", "zero2.yaml"])
def test_two_captured_ranks_that_share_a_gpu_give_the_bits_of_eager_ones_and_train_what_one_does(
    config: str, arguments: list[str], tmp_path: Path
) -> None:
    eager, captured, alone, together = (tmp_path / name for name in ("eager", "captured", "alone", "together"))
    # Each rank draws its own dropout, so without it. Few steps, as rounding grows with each.
    few = [*arguments, "--train.max-steps", "6", "--model.dropout", "0", "--lora.dropout", "0"]
    launched = [share(config, arguments, eager, *OFF), share(config, arguments, captured), share(config, few, together)]
    assert main([*few, "--out", str(alone)]) == 0
    _, of_captured, _ = map(printed, launched)
    assert json.loads((captured / "config.json").read_text())["world"]["processes"] == 2
    assert re.search(r"captured \d+ CUDA graphs", of_captured)
    assert_same_bits(captured, eager)
    assert_same_training(together, alone)
