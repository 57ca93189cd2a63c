"""The score command, its files and its messages."""

from pathlib import Path

import pytest

from lora_dist.cli.main import main

Capture = pytest.CaptureFixture[str]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def error_message(capsys: Capture, *arguments: str) -> str:
    """Run the score command and return the one sentence on stderr."""
    assert main(["score", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lora-dist: ")
    assert captured.err.count("\n") == 1
    return captured.err
