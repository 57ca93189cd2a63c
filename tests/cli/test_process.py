"""Standard streams whose reader is gone or cannot show a text, and users without a home."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
from launching import call_here, train_arguments
from made_runs import made_run

from lora_dist.cli.main import main
from lora_dist.cli.process import prepared_process
from lora_dist.run_dir import RunDir


@contextmanager
def without_reader() -> Iterator[TextIO]:
    """A pipe that nobody reads, as after `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1, encoding="utf-8") as stream:
        yield stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_command_whose_reader_is_gone_ends_quietly(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = made_run(tmp_path / "run")
    run.metrics.write_text("damaged\n")  # which is reported on stderr
    monkeypatch.setattr("lora_dist.report.write.make_plots", lambda _: ([], []))
    with without_reader() as stream:
        monkeypatch.setattr(sys, name, stream)
        assert main(["report", str(run.root)]) == 0
        assert main(["--help"]) == 0
        assert main(["no-such-command"]) == 2
    assert run.report_html.is_file()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_one_mr_is_trained_decoded_scored_and_reported_while_nobody_reads_the_progress(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--train.max-steps", 1, "--decode.limit", 1, "--decode.num-beams", 2, "--decode.max-new-tokens", 6)
    monkeypatch.setattr("lora_dist.report.write.make_plots", lambda _: ([], []))
    run = RunDir(tmp_path / "run")
    with without_reader() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert call_here("run", *train_arguments(tiny_gpt2, corpus), *few, "--out", run.root) == 0
    assert len(run.outputs.read_text().splitlines()) == 1
    assert run.scores.is_file()
    assert run.report_markdown.is_file()


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "caf? ? ?"), ("latin-1", "café ? £"), ("utf-8", "café ✓ £")]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_the_terminal_cannot_encode_is_replaced(
    name: str, encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding))
    with prepared_process():
        print("café ✓ £", file=getattr(sys, name))
    assert raw.getvalue().decode(encoding) == f"{expected}\n"


def test_an_answer_that_cannot_be_written_is_a_failure_and_progress_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(["--version"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert main(["no-such-command"]) == 2


def test_streams_that_were_closed_before_the_start_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0
    assert main(["no-such-command"]) == 2
    assert sys.stdout is sys.stderr is None


def test_other_errors_of_a_stream_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.TextIOWrapper):
        def write(self, _: str) -> int:
            raise OSError(errno.EBADF, "bad")

    with open(os.devnull, "wb") as raw:
        monkeypatch.setattr(sys, "stdout", Broken(raw))
        with pytest.raises(OSError, match="bad"), prepared_process():
            print("answer")


def test_a_user_without_a_home_has_a_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and a name
    monkeypatch.delenv("HOME")
    with prepared_process():
        home = Path(os.environ["HOME"])
        assert home.is_absolute()
        (home / ".cache").mkdir()
    assert "HOME" not in os.environ
    assert not home.exists()
    assert list(tmp_path.iterdir()) == []
