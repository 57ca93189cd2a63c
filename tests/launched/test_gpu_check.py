"""The script that checks and measures everything on a GPU, where there is none."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.launched
SCRIPT = Path(__file__).parents[2] / "launch" / "gpu_check.sh"


def check(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_failing_part_is_named_and_does_not_stop_the_others(corpus: Path, tmp_path: Path) -> None:
    found = check("--out", tmp_path, "decode", "train", "epochs", MODEL=str(tmp_path / "missing"), DATA=str(corpus))
    assert found.returncode == 1
    assert "no GPU here: a dry run" in found.stdout
    assert "failed: train-own-baseline epochs-own-baseline" in found.stdout
    assert found.stdout.count("FAILED after") == 2
    assert "missing" in (tmp_path / "epochs-own-baseline.log").read_text()


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    found = check("--out", tmp_path / "out", "speed")
    assert (found.returncode, found.stderr) == (2, "speed is no part: give some of tests, train, decode, epochs\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_measures_a_few_steps(corpus: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    found = check("--out", tmp_path, "train", "epochs", MODEL=str(tiny_gpt2), DATA=str(corpus))
    assert found.returncode == 0, found.stdout
    table = (tmp_path / "table.md").read_text()
    assert "| | own, baseline |" in table
    assert "all epochs, extrapolated" in table
