"""The real commands under the real launcher, in several processes over gloo, compared with one process."""

import json
import socket
from pathlib import Path

import pytest
from launching import assert_same_training, attempt, before_all_else, launcher, lora_dist, train_arguments

pytestmark = pytest.mark.launched


@pytest.fixture(scope="module")
def reference(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process without a launcher."""
    out = tmp_path_factory.mktemp("reference") / "run"
    lora_dist("train", *train_arguments(tiny_gpt2, corpus), "--out", out)
    return out


@pytest.mark.parametrize("config", ["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload"])
def test_every_config_trains_what_one_process_trains(
    config: str, tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lora_dist("train", *train_arguments(tiny_gpt2, corpus), "--out", out, launcher=launcher(f"{config}.yaml"))
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
    result = attempt("train", *train_arguments(tiny_gpt2, corpus), *extra, launcher=torchrun)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "config.json").read_text())["world"]["processes"] == 2
    assert_same_training(out, reference)


def test_a_checkpoint_of_one_process_resumes_under_another_strategy(
    tiny_gpt2: Path, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lora_dist("train", *train_arguments(tiny_gpt2, corpus), "--train.keep-checkpoints", 9, "--out", out)
    for step in (4, 6):
        (out / "checkpoints" / f"step-{step:06d}" / "COMPLETE").unlink()
    (out / "adapter" / "adapter_model.safetensors").unlink()
    lora_dist("train", *train_arguments(tiny_gpt2, corpus), "--out", out, "--resume", launcher=launcher("zero2.yaml"))
    assert_same_training(out, reference)


@pytest.mark.parametrize("others", [(1, 3), pytest.param((7,), marks=pytest.mark.slow)])
def test_run_in_two_processes_writes_every_file_and_decodes_the_same_bytes_as_other_world_sizes(
    others: tuple[int, ...], tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--decode.num-beams", 3, "--decode.max-new-tokens", 12, "--decode.batch-tokens", 250]
    settings += ["--decode.num-return", 2, "--decode.limit", 11]
    lora_dist("run", *train_arguments(tiny_gpt2, corpus), *settings, "--out", out, launcher=launcher("ddp.yaml"))
    names = ["config.json", "metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    names += ["checkpoints/step-000006/COMPLETE", "decode/outputs.jsonl", "decode/outputs.txt", "decode/references.txt"]
    names += ["scores.json", "report.md", "report.html"]
    assert [name for name in names if not (out / name).is_file()] == []
    scores = json.loads((out / "scores.json").read_text())
    metrics = ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"]
    assert list(scores) == [*metrics, "bootstrap", "slot_error_rate", "signature"]
    two = (out / "decode" / "outputs.jsonl").read_bytes()
    rows = [json.loads(line) for line in two.splitlines()]
    assert [row["index"] for row in rows] == list(range(11))
    assert all(row["score"] >= other["score"] for row in rows for other in row["alternatives"])
    for processes in others:
        for file in (out / "decode" / "ledger").iterdir():
            file.unlink()
        start = launcher("ddp.yaml", processes) if processes > 1 else ()
        lora_dist("decode", out, "--device", "cpu", launcher=start)
        assert (out / "decode" / "outputs.jsonl").read_bytes() == two


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


def test_copies_that_do_not_know_of_each_other_are_refused(tmp_path: Path) -> None:
    result = attempt("train", "improved", "--out", tmp_path / "run", SLURM_STEP_NUM_TASKS="4")
    assert result.returncode == 2
    assert "4 copies" in result.stderr
    assert "launch/multi_node.slurm" in result.stderr
    assert not (tmp_path / "run").exists()


def with_own(end: str) -> tuple[str, ...]:
    """torchrun for two ranks; the shell expands `end`, the last arguments, on each rank."""
    torchrun = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--no_python")
    return (*torchrun, "bash", "-c", f'exec python "$@" {end}', "bash")


def test_ranks_that_do_not_share_the_run_directory_are_refused(tiny_gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    variables = before_all_else(
        tmp_path, "from lora_dist.distributed import consistency; consistency.FILE_PATIENCE = 1.0"
    )
    command = ["train", *train_arguments(tiny_gpt2, corpus)]
    result = attempt(*command, launcher=with_own(f"--out {tmp_path}/$RANK"), **variables)
    assert result.returncode != 0
    here = socket.gethostname()
    assert f"lora-dist: --out {tmp_path / '0'} of {here} is not the same folder on {here}: " in result.stderr
    assert [file for file in tmp_path.glob("[01]/**/*") if file.is_file()] == []


def test_ranks_with_different_settings_are_refused(tiny_gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    command = ["train", *train_arguments(tiny_gpt2, corpus), "--out", tmp_path / "run"]
    result = attempt(*command, launcher=with_own("--train.checkpoint-steps $((RANK + 3))"))
    assert result.returncode != 0
    here = socket.gethostname()
    assert f"lora-dist: --train.checkpoint-steps is 3 on {here} and 4 on {here}: " in result.stderr
    assert not (tmp_path / "run").exists()
