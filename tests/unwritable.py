"""Folders that the user of the tests, who may be root, may not write to."""

import os
from pathlib import Path

import pytest


def may_not_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `folder` and what is in it read-only, as one on a read-only file system or of another user."""
    access = os.access

    def denied(path: os.PathLike[str] | str, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and Path(path).resolve().is_relative_to(folder.resolve()))

    monkeypatch.setattr(os, "access", denied)
