"""Atomic reads and writes of JSON, text and folders: each exists completely or not at all.

A file or folder is written under a temporary name in the same folder, flushed to disk and renamed.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_dist.errors import UserError

PART = ".part."
"""Name prefix of files and folders that are still being written."""


def read_json(path: Path, problem: str) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: the file.
        problem: what its absence means, the start of the error message.

    Raises:
        UserError: if the file is missing, unreadable or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(f"{problem}: {path} {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{problem}: {path} holds no JSON object")
    return value


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a finite number, and no truth value."""
    return type(value) in (int, float) and math.isfinite(value)


def require_readable(file: Path) -> None:
    """Refuse a file that this user may not read; safetensors would report it as missing.

    Raises:
        UserError: which names it.
    """
    if file.exists() and not os.access(file, os.R_OK):
        raise UserError(f"this user may not read {file}: ask its owner for the right")


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one JSON object atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, creating its folder; what UTF-8 lacks, as in a file's name, is escaped."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its folder; its mode follows the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def save_text(path: Path, text: str) -> None:
    """Write a text file to a path that the user gave: through links, and into what is no file, such as /dev/stdout.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            path.write_text(text, encoding="utf-8")
        else:
            write_text(Path(os.path.realpath(path)), text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file") from error


@contextmanager
def new_folder(path: Path, *, marker: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` if the block succeeds; modes follow the umask.

    With `marker`, an empty file of that name is added last, once everything else is on disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    old = temporary.with_name(f"{temporary.name}.old")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _follow_umask(file, temporary)
            with file.open("rb") as opened:
                _sync(opened.fileno())
        _sync_folder(temporary)
        if path.exists() or path.is_symlink():
            path.rename(old)
        temporary.replace(path)
    except BaseException:
        if (old.exists() or old.is_symlink()) and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with suppress(OSError):
        remove(old)
    if marker is not None:
        write_text(path / marker, "")
    _sync_folder(path.parent)


def _temporary_name(path: Path) -> Path:
    """Return an unused name next to `path`. Not from `tempfile`, whose files only their owner may read."""
    return path.with_name(f"{PART}{path.name}.{uuid4().hex[:12]}")


def _follow_umask(file: Path, folder: Path) -> None:
    """Give a file that a library wrote for its owner only the mode that new files get in `folder`."""
    with suppress(OSError):  # a file system without modes
        file.chmod(folder.stat().st_mode & 0o666)


def _sync(descriptor: int) -> None:
    """Flush a file to disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that a rename in it survives a power cut."""
    with suppress(OSError):  # a file system that cannot; the file stands under its name all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
