"""Atomic reads and writes of JSON, text and folders: each exists completely or not at all.

A file or folder is written under a temporary name in the same folder, flushed to disk and renamed.
"""

import json
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


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line, skipping lines that a kill cut short."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one JSON object atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, creating its folder."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its folder; its mode follows the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def save_text(path: Path, text: str) -> None:
    """Write a text file to a path that the user gave.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_text(path, text)
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
                os.fsync(opened.fileno())
        _sync_folder(temporary)
        if path.exists():
            path.rename(old)
        temporary.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
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


def _sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that a rename in it survives a power cut."""
    with suppress(OSError):  # a file system that cannot; the file stands under its name all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
