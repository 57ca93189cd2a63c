"""Atomic reads and writes of JSON, text and folders: each exists completely or not at all.

A file or folder is written under a temporary name in the same folder, flushed to disk and renamed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{PART}{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide the file from the group
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
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
    """Yield a temporary folder that replaces `path` if the block succeeds.

    With `marker`, an empty file of that name is added last, once everything else is on disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{PART}{path.name}."))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        _sync_folder(temporary)
        if path.exists():
            path.rename(old)
        os.replace(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if marker is not None:
        write_text(path / marker, "")
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
