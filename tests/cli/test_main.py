"""Mistakes of the user: one sentence that names the value and the remedy, exit code 2, and nothing written."""

import shutil
import subprocess
import sys
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
    try:
        code: object = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # how tyro ends
        code = stop.code
    assert code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--lora.rank", 0], "--lora.rank is 0: must be >= 1"),
        (["--lora.rank", -4], "--lora.rank is -4: must be >= 1"),
        (["--lora.rnk", 4], "--lora.rnk"),
        (["--lora.targets", "c_attn", "q_proj"], "--lora.targets q_proj matches no layer: this model has c_attn"),
        (["--train.accumulation-steps", 3], "--train.global-batch-size is 8: it does not divide among 1 processes x 3"),
        (["--model.name", "nobody/no-such-model"], "--model.name nobody/no-such-model cannot be loaded"),
        (["--device", "cuda:7"], "--device is cuda:7: this machine has"),
        (["--device", "gpu"], "--device is gpu: give auto, cpu, cuda or cuda:N"),
        (["--data.dir", "/no/such/folder"], "/no/such/folder"),
        (["--train.epochs", "many"], "many"),
        (["--train.tracker", "wandb"], "pip install 'lora-dist[wandb]'"),
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["decode", tmp_path], ["generate", tmp_path, "name[A]"], ["merge", tmp_path, tmp_path / "merged"]):
        assert "is not the folder of a run" in refusal(capsys, *command)
    assert "is not the folder of a run" in refusal(capsys, "report", tmp_path)
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
