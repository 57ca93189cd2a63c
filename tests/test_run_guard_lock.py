"""The lock of a run directory: one writer at a time, and none that a killed process leaves behind."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import exclusive


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_second_writer_is_refused_with_who_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with exclusive(RunDir(tmp_path / "out")):
        for same in (tmp_path / "out", tmp_path / "link"):
            with pytest.raises(UserError) as error, exclusive(RunDir(same)):
                pass
            who = f"process {os.getpid()} on {socket.gethostname()} since 20"
            assert str(error.value).startswith(f"{same} is being written to by {who}")
    with exclusive(RunDir(tmp_path / "out")):
        pass


@pytest.mark.launched
def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    hold = (
        "import sys, time, pathlib, lora_dist.run_guard as g\n"
        "with g.exclusive(g.RunDir(pathlib.Path(sys.argv[1]))): print(flush=True); time.sleep(99)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "\n"
    with pytest.raises(UserError, match=f"by process {other.pid} on"), exclusive(RunDir(tmp_path)):
        pass
    other.kill()
    other.communicate()
    with exclusive(RunDir(tmp_path)):
        pass


def test_a_lock_leaves_no_folder_in_which_nothing_was_written(tmp_path: Path) -> None:
    with exclusive(RunDir(tmp_path / "a" / "b")):
        assert RunDir(tmp_path / "a" / "b").lock.is_file()
    assert names(tmp_path) == set()
    with exclusive(RunDir(tmp_path / "a" / "b")):
        (tmp_path / "a" / "b" / "file").touch()
    assert names(tmp_path) == {"a", "a/b", "a/b/file", "a/b/.lock"}


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with exclusive(RunDir(tmp_path)):
        assert "cannot be locked (No locks available): start only one process" in caplog.text
