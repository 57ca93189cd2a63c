"""Start the real commands, with and without a launcher, for the tests that need several processes.

A new process takes five seconds of CPU time for its imports. Where a test is not about the process, `call_here` saves
them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lora_dist.cli.main import main
from lora_dist.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "accelerate_configs"
TIMEOUT = 240  # seconds for one launch
# fp32 also without a launcher. The default number of threads would differ between one process and several.
COMMON = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_MIXED_PRECISION": "no"}


def call_here(*arguments: object) -> int:
    """Run a command of the package in this process, with the result of one process of its own; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in COMMON.items():
            patch.setenv(name, value)
        return main([str(argument) for argument in arguments])


def lora_dist(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of the package, under `launcher` if there is one, and require that it works."""
    result = attempt(*arguments, launcher=launcher)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def attempt(*arguments: object, launcher: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the package, whatever comes of it."""
    return finish(begin(*arguments, launcher=launcher, **variables))


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a started command, and kill it if it does not come."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def begin(*arguments: object, launcher: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Start a command of the package."""
    return start(command_line(*arguments, launcher=launcher), **variables)


def command_line(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    """A command of the package, under `launcher` if there is one."""
    under = ["-m", *launcher] if launcher else []
    return [sys.executable, *under, "-m", "lora_dist", *map(str, arguments)]


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a command that ends in one of the package."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **COMMON, **variables},
    )


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that the launcher has started, rank 0 first."""
    children = psutil.Process(process.pid).children(recursive=True)
    return sorted((c for c in children if "LOCAL_RANK" in c.environ()), key=lambda c: int(c.environ()["LOCAL_RANK"]))


def before_all_else(folder: Path, code: str, rank: int | None = None) -> dict[str, str]:
    """Environment in which all launched processes, or only one `rank`, run `code` first; it is written to `folder`."""
    those = "'LOCAL_RANK' in os.environ" if rank is None else f"os.environ.get('LOCAL_RANK') == '{rank}'"
    (folder / "sitecustomize.py").write_text(f"import os\nif {those}:\n{indent(dedent(code), '    ')}")
    return {"PYTHONPATH": ":".join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def launcher(config: str, processes: int | None = None) -> tuple[str, ...]:
    """accelerate launch with one of the shipped configs, in fp32."""
    count = () if processes is None else ("--num_processes", str(processes))
    return ("accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--mixed_precision", "no", *count)


def train_arguments(base: Path, corpus: Path) -> list[object]:
    """17 examples in global batches of 8: the last has one, so the second of two ranks has none. No dropout."""
    return [
        *("improved", "--model.name", base, "--data.dir", corpus, "--data.limit-train", 17, "--device", "cpu"),
        *("--train.epochs", 2, "--train.learning-rate", 1e-2, "--train.warmup-steps", 2, "--train.log-steps", 1),
        *("--train.checkpoint-steps", 2, "--train.max-grad-norm", 5, "--model.dropout", 0, "--lora.dropout", 0),
    ]


def complete_checkpoints(run: RunDir) -> list[int]:
    """Steps after which a complete checkpoint of a run was written, oldest first."""
    return sorted(int(marker.parent.name.removeprefix("step-")) for marker in run.checkpoints.glob("step-*/COMPLETE"))


def metrics(run: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def adapter(run: Path) -> torch.Tensor:
    """All trainable parameters in one vector, in the order of their names."""
    state = load_file(run / "adapter" / "adapter_model.safetensors")
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def assert_same_training(run: Path, other: Path) -> None:
    assert metrics(run, "step") == metrics(other, "step")
    assert metrics(run, "lr") == metrics(other, "lr")
    assert metrics(run, "loss") == pytest.approx(metrics(other, "loss"), rel=1e-5)
    assert metrics(run, "dev_loss") == pytest.approx(metrics(other, "dev_loss"), rel=1e-5)
    difference = (adapter(run) - adapter(other)).norm() / adapter(other).norm()
    assert difference < 1e-5
