"""Rows of metrics.jsonl after a kill or a power cut."""

import json
import logging
from pathlib import Path

import pytest

from lora_dist.training.log_rows import read_log

STEP = {"step": 10, "loss": 2.5, "lr": 1e-4, "examples_per_second": 4.0, "peak_memory_gib": [1.0]}
DEV = {"step": 20, "dev_loss": 1.9}


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 200 + json.dumps(STEP).encode(),
        json.dumps(STEP).encode()[:30],
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"step": 15}',
        b'{"step": "15", "dev_loss": 1.0}',
        b'{"step": 15, "dev_loss": NaN}',
        json.dumps(STEP | {"loss": "2"}).encode(),
        json.dumps(STEP | {"examples_per_second": 0}).encode(),
        json.dumps(STEP | {"peak_memory_gib": [None]}).encode(),
    ],
)
def test_damaged_lines_are_dropped_with_a_note(line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([json.dumps(STEP).encode(), line, json.dumps(DEV).encode()]) + b"\n")
    with caplog.at_level(logging.WARNING):
        assert read_log(file) == [STEP, DEV]
    assert f"{file}: 1 of 3 lines are damaged and dropped" in caplog.text


def test_a_missing_or_empty_log_has_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").touch()
    assert read_log(tmp_path / "metrics.jsonl") == []
