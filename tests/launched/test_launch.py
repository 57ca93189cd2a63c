"""The real commands under the real launcher, in several processes over gloo, compared with one process."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
from launching import (
    ROOT,
    assert_same_training,
    attempt,
    call_here,
    finish,
    launcher,
    lora_dist,
    start,
    train_arguments,
)

from lora_dist.cli.main import main

pytestmark = pytest.mark.launched
MRS = 59


@pytest.fixture(scope="module")
def reference(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of one process without a launcher, with all its checkpoints."""
    out = tmp_path_factory.mktemp("reference") / "run"
    settings = (*train_arguments(tiny_gpt2, corpus), "--train.keep-checkpoints", 9)
    assert call_here("train", *settings, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def two_processes(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run of two processes: training, decoding and report."""
    out = tmp_path_factory.mktemp("two") / "run"
    # With the default size, a chunk has 23 of these MRs.
    settings = ["--decode.num-return", 2, "--decode.limit", MRS]
    lora_dist("run", *train_arguments(tiny_gpt2, corpus), *settings, "--out", out, launcher=launcher("ddp.yaml"))
    return out


def assert_trained_as(strategy: str, processes: int, run: Path, reference: Path) -> None:
    world = json.loads((run / "config.json").read_text())["world"]
    assert (world["strategy"], world["processes"]) == (strategy, processes)
    assert_same_training(run, reference)


@pytest.mark.parametrize(
    "config",
    [
        # By default, one process is started in this process.
        pytest.param("single", marks=pytest.mark.slow),
        # By default, a checkpoint is resumed under zero2, see below; zero1 is the same optimizer with whole gradients.
        pytest.param("zero1", marks=pytest.mark.slow),
        pytest.param("zero2", marks=pytest.mark.slow),
        "zero3",
        # By default, it is zero3 that is tested, which differs in where the partitions are kept.
        pytest.param("zero3_offload", marks=pytest.mark.slow),
    ],
)
def test_every_config_trains_what_one_process_trains(
    config: str, tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lora_dist("train", *train_arguments(tiny_gpt2, corpus), "--out", out, launcher=launcher(f"{config}.yaml"))
    assert_trained_as(config.removesuffix("_offload"), 1 if config == "single" else 2, out, reference)


def test_a_run_under_ddp_trains_what_one_process_trains(two_processes: Path, reference: Path) -> None:
    assert_trained_as("ddp", 2, two_processes, reference)


# By default, torchrun starts the run that it restarts, in test_failures.py.
@pytest.mark.slow
def test_torchrun_without_any_flag_joins_its_processes_and_accumulation_changes_nothing(
    tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    torchrun = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    extra = ("--train.accumulation-steps", 2, "--out", out)
    result = attempt("train", *train_arguments(tiny_gpt2, corpus), *extra, launcher=torchrun)
    assert result.returncode == 0, result.stderr
    assert_trained_as("ddp", 2, out, reference)


def test_a_checkpoint_of_one_process_resumes_under_another_strategy(
    tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    for step in (4, 6):
        (out / "checkpoints" / f"step-{step:06d}" / "COMPLETE").unlink()
    (out / "adapter" / "adapter_model.safetensors").unlink()
    lora_dist("train", *train_arguments(tiny_gpt2, corpus), "--out", out, "--resume", launcher=launcher("zero2.yaml"))
    assert_same_training(out, reference)


def test_a_run_in_two_processes_writes_every_file(two_processes: Path) -> None:
    names = ["config.json", "metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    names += ["checkpoints/step-000006/COMPLETE", "decode/outputs.jsonl", "decode/outputs.txt", "decode/references.txt"]
    names += ["scores.json", "report.md", "report.html"]
    assert [name for name in names if not (two_processes / name).is_file()] == []
    scores = json.loads((two_processes / "scores.json").read_text())
    metrics = ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"]
    assert list(scores) == [*metrics, "bootstrap", "slot_error_rate", "signature"]
    rows = [json.loads(line) for line in (two_processes / "decode" / "outputs.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(MRS))
    assert all(row["score"] >= other["score"] for row in rows for other in row["alternatives"])


# By default, two processes are compared with one; the three chunks do not divide among the two either.
@pytest.mark.parametrize("processes", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 5))])
def test_two_processes_decode_the_bytes_of_other_world_sizes(
    processes: int, two_processes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(two_processes, out)
    shutil.rmtree(out / "decode")
    if processes == 1:
        assert call_here("decode", out, "--device", "cpu") == 0
    else:
        lora_dist("decode", out, "--device", "cpu", launcher=launcher("ddp.yaml", processes))
    outputs = [(run / "decode" / "outputs.jsonl").read_bytes() for run in (out, two_processes)]
    assert outputs[0] == outputs[1]
    ledgers = [path.read_text() for path in sorted((two_processes / "decode" / "ledger").glob("rank-*.jsonl"))]
    assert [bool(ledger) for ledger in ledgers] == [True, True]


# By default, tests/distributed/test_compat.py has the interface that keeps DeepSpeed from compiling.
@pytest.mark.slow
def test_a_kill_while_deepspeed_compiles_does_not_block_the_next_start(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"  # torch waits until its creator removes it
    lock.parent.mkdir(parents=True)
    lock.touch()
    command = ["train", *train_arguments(tiny_gpt2, corpus), "--train.max-steps", 2, "--out", tmp_path / "run"]
    where = str(lock.parent.parent)
    done = attempt(*command, launcher=launcher("zero2.yaml"), TORCH_EXTENSIONS_DIR=where)
    assert done.returncode == 0, done.stderr
    assert list(lock.parent.iterdir()) == [lock]


def test_copies_that_do_not_know_of_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert main(["train", "improved", "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert "4 copies" in errors
    assert "launch/multi_node.slurm" in errors
    assert not (tmp_path / "run").exists()


TWO_REFUSALS = """
import os, sys
from pathlib import Path
from lora_dist.cli.main import main
from lora_dist.distributed import consistency

consistency.FILE_PATIENCE = 1.0
folder, rank, command = Path(sys.argv[1]), os.environ["RANK"], sys.argv[2:]
own_folder = ["--out", str(folder / rank)]
own_settings = ["--out", str(folder / "run"), "--train.checkpoint-steps", str(int(rank) + 3)]
for number, own in enumerate((own_folder, own_settings)):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # so that each has its own keys in the launcher's store
    assert main([*command, *own]) == 2
"""


def test_ranks_that_do_not_share_the_run_directory_or_the_settings_are_refused(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    program = tmp_path / "two_refusals.py"
    program.write_text(TWO_REFUSALS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = ["train", *train_arguments(tiny_gpt2, corpus)]
    result = finish(start([*torchrun, str(program), str(tmp_path), *map(str, command)], PYTHONPATH=str(ROOT)))
    assert result.returncode == 0, result.stderr
    here = socket.gethostname()
    assert f"lora-dist: --out {tmp_path / '0'} of {here} is not the same folder on {here}: " in result.stderr
    assert f"lora-dist: --train.checkpoint-steps is 3 on {here} and 4 on {here}: " in result.stderr
    assert [file for file in tmp_path.glob("[01]/**/*") if file.is_file()] == []
    assert not (tmp_path / "run").exists()
