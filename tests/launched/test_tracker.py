"""The tracker trackio, for which a module with the same functions stands in: it writes down its calls."""

import json
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, attempt, train_arguments

from lora_dist.run_dir import RunDir
from lora_dist.training.log_rows import read_log

pytestmark = [pytest.mark.launched, pytest.mark.slow]

STAND_IN = """
import json, os

class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)

config = Config()

def write(**call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step=None):
        write(step=step, **values)
    def finish(self):
        write(finished=True, settings=len(config))

def init(project, name, resume):
    write(project=project, name=name, resume=resume)
    return Run()
"""


def test_trackio_gets_the_rows_of_metrics_jsonl_and_its_folder_is_printed(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    package, info = tmp_path / "site" / "trackio", tmp_path / "site" / "trackio-0.43.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 0.43.0\n")
    calls, run = tmp_path / "calls.jsonl", RunDir(tmp_path / "run")
    environment: dict[str, Any] = {
        "PYTHONPATH": f"{package.parent}:{ROOT}",
        "CALLS": str(calls),
        "TRACKIO_DIR": str(tmp_path / "logs"),
    }
    arguments = [*train_arguments(tiny_gpt2, corpus), "--train.tracker", "trackio", "--out", run.root]
    result = attempt("train", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    assert f"trackio's logs are in {tmp_path / 'logs'}: trackio show --project lora_dist" in result.stderr
    first, *logged, last = map(json.loads, calls.read_text().splitlines())
    assert first == {"project": "lora_dist", "name": str(run.root), "resume": "never"}
    assert last["finished"]
    assert last["settings"] > 0
    rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in read_log(run.metrics)]
    assert logged == rows
