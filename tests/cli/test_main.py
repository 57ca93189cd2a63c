"""Mistakes of the user: one sentence that names the value and the remedy, exit code 2, and nothing written."""

import errno
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import made_run

from lora_dist.cli.main import COMMANDS, main
from lora_dist.data.synthetic import write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", seed=3, num_train_mrs=5)
    return tmp_path / "corpus"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that has to fail prints on stderr."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--lora.rank", 0], "--lora.rank is 0: must be >= 1"),
        (["--lora.rank", -4], "--lora.rank is -4: must be >= 1"),
        (["--lora.rnk", 4], "--lora.rnk is unknown"),
        (["--lora.targets", "c_attn", "q_proj"], "--lora.targets q_proj matches no layer: this model has c_attn"),
        (["--train.accumulation-steps", 3], "--train.global-batch-size is 8: it does not divide among 1 processes x 3"),
        (["--model.name", "nobody/no-such-model"], "--model.name nobody/no-such-model cannot be loaded"),
        (["--device", "cuda:7"], "--device is cuda:7: this machine has"),
        (["--device", "gpu"], "--device is gpu: give auto, cpu, cuda or cuda:N"),
        (["--data.dir", "/no/such/folder"], "/no/such/folder"),
        (["--train.epochs", "many"], "--train.epochs is many: give a whole number"),
        (["--train.tracker", "wandb"], "pip install 'lora-dist[wandb]'"),
        (["--train.tracker", "trackio"], "pip install 'lora-dist[trackio]'"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    settings: list[object],
    message: str,
    tiny_gpt2: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    start = ["train", "improved", "--model.name", tiny_gpt2, "--data.dir", corpus, "--out", out]
    assert message in refusal(capsys, *start, *settings)
    assert not out.exists()


def spoil(change: Callable[[bytes], bytes], corpus: Path, name: str = "trainset.csv") -> None:
    (corpus / name).write_bytes(change((corpus / name).read_bytes()))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda csv: csv.replace(b"mr,ref", b"meaning,text"), "meaning"),
        (lambda csv: csv + b'"name[Larkspur]",""\n', "empty"),
        (lambda csv: csv + b'"name[Larkspur]","caf\xe9"\n', "UTF-8"),
    ],
)
def test_bad_data_is_refused_by_file_before_anything_is_written(
    change: Callable[[bytes], bytes],
    problem: str,
    tiny_gpt2: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(change, corpus)
    out = tmp_path / "run"
    message = refusal(capsys, "train", "baseline", "--model.name", tiny_gpt2, "--data.dir", corpus, "--out", out)
    assert problem in message
    assert "trainset.csv" in message
    assert not out.exists()


def test_a_bad_test_set_or_a_missing_java_is_refused_before_training(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    start = ["run", "baseline", "--model.name", tiny_gpt2, "--data.dir", corpus, "--out", out]
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "no-java"))
    assert "JAVA_HOME" in refusal(capsys, *start)
    monkeypatch.delenv("JAVA_HOME")
    (corpus / "testset_w_refs.csv").unlink()
    assert "testset_w_refs.csv" in refusal(capsys, *start)
    long = ", ".join(f"name[A Rather Long Name Number {number}]" for number in range(120))
    (corpus / "testset_w_refs.csv").write_text(f'mr,ref\n"{long}",Long.\n')
    assert "--decode.max-new-tokens is 64: after a prompt of" in refusal(capsys, *start)
    assert not out.exists()


def test_a_folder_that_holds_something_is_not_changed(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made_run(tmp_path / "run").root
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    start = ["train", "baseline", "--model.name", tiny_gpt2, "--data.dir", corpus, "--out", out]
    message = refusal(capsys, *start)
    assert str(out) in message
    assert "--resume" in message
    assert "--overwrite" in message
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("meow")
    assert "not the folder of a run" in refusal(capsys, *start[:-1], foreign, "--overwrite")
    assert (foreign / "cat.jpg").exists()


def test_commands_refuse_a_folder_that_is_no_run_and_unknown_names(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["decode", tmp_path], ["generate", tmp_path, "name[A]"], ["merge", tmp_path, tmp_path / "merged"]):
        assert "is not the folder of a run" in refusal(capsys, *command)
    assert "is not the folder of a run" in refusal(capsys, "report", tmp_path)
    for command in (["decode", tiny_gpt2], ["generate", tiny_gpt2, "name[A]"], ["merge", tiny_gpt2, tmp_path / "m"]):
        assert "its config.json is not a run's, but perhaps a model's" in refusal(capsys, *command)
    assert "RUN" in refusal(capsys, "report")
    assert "trian" in refusal(capsys, "trian")
    assert "best" in refusal(capsys, "run", "best")


def test_a_damaged_or_missing_adapter_is_refused_by_decode(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    short = ["--train.max-steps", 1, "--data.limit-train", 8, "--device", "cpu"]
    start = ["train", "baseline", "--model.name", tiny_gpt2, "--data.dir", corpus, "--out", out, *short]
    assert main([str(argument) for argument in start]) == 0
    (out / "adapter" / "adapter_model.safetensors").write_bytes(b"not safetensors")
    assert "adapter_model.safetensors cannot be read" in refusal(capsys, "decode", out)
    shutil.rmtree(out / "adapter")
    assert "train first" in refusal(capsys, "decode", out)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.launched
def test_help_and_scores_need_no_torch() -> None:
    imports = "import sys, lora_dist.cli.main, lora_dist.evaluation.scoring"
    code = f"{imports}; print('torch' in sys.modules, 'accelerate' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_no_command_writes_to_the_folder_of_a_model_or_of_other_files(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, link, photos = tmp_path / "model", tmp_path / "link", tmp_path / "photos"
    shutil.copytree(tiny_gpt2, model)
    link.symlink_to(model)
    (photos / "plots").mkdir(parents=True)
    (photos / "cat.jpg").write_text("meow")
    (photos / "report.md").write_text("# My report")
    (photos / ".lock").write_text("another program's")
    run, few = made_run(tmp_path / "run").root, ("--model.name", tiny_gpt2, "--data.dir", corpus)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (model, link, photos):
        for command in (
            ["train", "baseline", *few, "--overwrite", "--out", out],
            ["run", "baseline", *few, "--resume", "--out", out],
            ["decode", run, *few, "--out", out],
            ["merge", run, out],
            ["report", run, "--out", out],
            ["demo", "--out", out],
            ["reproduce", "--models", tiny_gpt2, "--data.dir", corpus, "--out", out],
        ):
            message = refusal(capsys, *command)
            assert str(out) in message, command
            assert message.startswith("lora-dist: "), command
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "out of memory; complete checkpoints are kept. Try more --train.accumulation-steps"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "out of memory; .*: CUDA out of memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 1, "out of memory; "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory; "),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full; nothing that was complete is lost"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "the disk is full; "),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            2,
            "/a/b cannot be used \\(Permission denied\\): name another place",
        ),
        (
            RuntimeError("put_ does not have a deterministic implementation, but you set 'torch.use_determ..."),
            1,
            "complete checkpoints are kept: add --resume and --train.no-deterministic, as put_ does not have .*tion$",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), 2, "/a/b cannot be used \\(Read-only file system\\)"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(
    error: Exception, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "train", fail)
    assert main(["train"]) == code
    assert re.match(f"lora-dist: {message}.*\n$", capsys.readouterr().err)


@pytest.mark.parametrize("local_rank", ["", "0"])
def test_a_user_error_is_printed_once_per_machine(
    local_rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    assert "trian" in refusal(capsys, "trian")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert refusal(capsys, "trian") == ""


def test_a_command_runs_in_a_thread_and_with_the_argument_of_old_launchers(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    short = ["--train.max-steps", 1, "--data.limit-train", 8, "--device", "cpu", "--local-rank=0", "--local_rank=0"]
    command = ["train", "baseline", "--model.name", tiny_gpt2, "--data.dir", corpus, "--out", tmp_path / "run", *short]
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main([str(argument) for argument in command])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert (tmp_path / "run" / "adapter").is_dir()
