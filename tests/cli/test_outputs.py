"""Folders and files that cannot be written are refused by every command before any work, in one sentence."""

import errno
from pathlib import Path

import pytest
from made_runs import made_run
from unwritable import may_not_write

from lora_dist.cli import commands
from lora_dist.cli.main import COMMANDS, main

Capture = pytest.CaptureFixture[str]


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refusal(capsys: Capture, *arguments: object) -> str:
    """What a command that has to fail prints on stderr, one line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lora-dist: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("target", ["file/new", "dangling", "locked/new"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", "baseline", "--out"],
        ["run", "baseline", "--out"],
        ["decode", "RUN", "--out"],
        ["report", "RUN", "--out"],
        ["merge", "RUN"],
        ["reproduce", "--out"],
        ["demo", "--out"],
        ["plan", "baseline", "--json"],
        ["bench", "score", "--json"],
        ["bench", "train", "baseline", "--json"],
        ["bench", "decode", "--json"],
        ["bench", "scaling", "--json"],
        ["score", "TEXT", "TEXT", "--save"],
        ["score", "TEXT", "TEXT", "--sentence-level"],
    ],
    ids=lambda command: " ".join(command[:2]) + " " + command[-1],
)
def test_an_output_that_cannot_be_written_is_refused(
    command: list[str], target: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("One.\nTwo.\n")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "locked").mkdir()
    made_run(tmp_path / "run")
    may_not_write(tmp_path / "locked", monkeypatch)
    before = files(tmp_path)
    places = {"RUN": tmp_path / "run", "TEXT": tmp_path / "file"}
    message = refusal(capsys, *(places.get(word, word) for word in command), tmp_path / target)
    assert str(tmp_path / target) in message
    assert "name another" in message
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["decode", "report"])
def test_a_run_that_may_only_be_read_is_refused_where_it_would_be_written_to(
    command: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path / "run")
    may_not_write(run.root, monkeypatch)
    before = files(tmp_path)
    assert f"{run.root} cannot be written to: name another folder" in refusal(capsys, command, run.root)
    assert files(tmp_path) == before


def test_a_scored_run_that_may_only_be_read_is_reported_elsewhere_and_one_without_scores_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_dist.report.write.make_plots", lambda _: ([], []))
    run = made_run(tmp_path / "run")
    may_not_write(run.root, monkeypatch)
    before = files(run.root)
    assert main(["report", str(run.root), "--out", str(tmp_path / "report")]) == 0
    assert files(run.root) == before
    capsys.readouterr()
    run.scores.unlink()
    message = refusal(capsys, "report", run.root, "--out", tmp_path / "report")
    assert f"{run.root} has to be scored, but {run.root} cannot be written to" in message


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG]
)
def test_a_file_that_a_command_meets_later_is_named(
    code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doctor(_: object) -> int:
        raise OSError(code, "reason", "/some/file")

    monkeypatch.setitem(COMMANDS, commands.doctor.__name__, doctor)
    assert "/some/file cannot be used (reason): name another place" in refusal(capsys, "doctor")


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    "command", [["train", "baseline"], ["report", "run"], ["demo"], ["reproduce"], ["decode", "run"]]
)
def test_an_empty_out_is_refused(
    command: list[str], value: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a shell variable that is not set."""
    monkeypatch.chdir(tmp_path)
    assert "--out is empty: give a value, or leave it out" in refusal(capsys, *command, "--out", value)
    assert "--out is empty" in refusal(capsys, *command, f"--out={value}")


def test_an_empty_folder_is_refused_where_it_has_no_flag(capsys: Capture) -> None:
    assert "an argument of merge is empty" in refusal(capsys, "merge", "run", "")


def test_the_version_is_printed(capsys: Capture) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lora-dist {version('lora-dist')}\n"
