"""The time of a whole training, extrapolated from a short one, and the table of what was measured on a GPU."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_dist.bench import epochs
from lora_dist.bench.epochs import TrainingTimes
from lora_dist.bench.gpu_table import gpu_table
from lora_dist.bench.machine import Measurement
from lora_dist.cli.main import main
from lora_dist.run_dir import RunDir


def test_a_short_training_is_extrapolated_to_the_whole(
    corpus: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[TrainingTimes] = []
    checkpoints: list[str] = []

    def measure_here(program: Any, settings: Any, folder: Path, interval: int, threads: int) -> Measurement:
        seconds, times = program(settings, folder, interval)
        measured.append(times)
        checkpoints.extend(path.name for path in RunDir(folder).checkpoints.iterdir())
        return Measurement(seconds, 2**30, times)

    monkeypatch.setattr(epochs, "measure_apart", measure_here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    file = tmp_path / "rows.json"
    settings = ["--model.name", str(tiny_gpt2), "--data.dir", str(corpus), "--train.checkpoint-steps", "4"]
    start = ["bench", "epochs", "baseline", *settings, "--train.epochs", "3", "--json", str(file)]
    assert main([*start, "--updates", "6"]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    (times,) = measured
    assert sorted(checkpoints) == ["step-000006", "step-000008"]  # one every 2 steps, of which the newest are kept
    planned = tmp_path / "plan.json"
    assert (
        main(["plan", "baseline", *settings, "--train.epochs", "3", "--precision", "fp32", "--json", str(planned)]) == 0
    )
    plan = json.loads(planned.read_text())
    steps = plan["schedule"]["steps"]
    whole = steps * times.step + plan["schedule"]["checkpoints"] * times.checkpoint + 3 * times.evaluation
    assert rows["the whole training"]["value"] == pytest.approx(whole, abs=0.06)
    assert rows["the whole training"]["ratio"] == pytest.approx(whole / (steps * times.step), abs=1e-3)
    assert rows["peak memory"]["value"] == 1
    (tmp_path / "out").mkdir()
    shutil.copy(file, tmp_path / "out" / "epochs-small-baseline.json")
    assert gpu_table(tmp_path / "out").count("\n| ") == 1 + len(rows) + 2  # the head, and two ratios
    capsys.readouterr()
    assert main([*start, "--updates", "4"]) == 2
    assert "--updates is 4: must be a multiple of 3" in capsys.readouterr().err


def test_the_table_of_a_gpu_has_what_was_measured_and_leaves_out_what_was_not(tmp_path: Path) -> None:
    def write(name: str, **rows: tuple[float, float]) -> None:
        found = [{"name": k, "value": v, "unit": "s/MR", "ratio": r} for k, (v, r) in rows.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(found))

    peers = {
        "PEFT and Trainer, bf16 weights: step": (40.0, 16.0),
        "PEFT and Trainer, bf16 autocast: step": (30.0, 12.0),
    }
    write("train-small-improved", **{"ours, bf16: step": (2.5, 1.0), **peers})
    write("train-medium-baseline", **{"ours, bf16: step": (5.5, 1.0)})
    write("decode", **{"ours, bf16": (0.001, 1.0), "generate, batch 64, bf16": (0.02, 20.0)})
    (tmp_path / "tests.log").write_text("......\n===== 6 passed in 3.2s =====\n")
    lines = gpu_table(tmp_path).splitlines()
    assert "Tests: 6 passed in 3.2s" in lines
    assert "| | small, improved | medium, baseline |" in lines
    assert "| step, captured, bf16, ms | 2.5 | 5.5 |" in lines
    assert "| PEFT and Trainer's best, times our step | 12.0 |  |" in lines
    assert "| generate, batch 64, bf16 | 0.02 | s/MR | 20.0 |" in lines
    assert not any("peak memory" in line for line in lines)
