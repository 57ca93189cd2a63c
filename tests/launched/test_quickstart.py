"""The README's quickstart, run as it is printed, except for model, data and size: what it promises must appear."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_dist.metrics.suite import METRICS

pytestmark = [pytest.mark.launched, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TIMEOUT = 900
SMALL = "--train.max-steps 6 --train.warmup-steps 2 --data.limit-dev 20 --decode.limit 4"
PROGRAMS = {
    "pip": "echo pip must not change the environment of the tests >&2; exit 1",
    "python": f'exec {sys.executable} "$@"',
    "lora-dist": f'exec {sys.executable} -m lora_dist "$@"',
    "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
}
SAID = {
    "launch/demo.sh": ("3/3 LoRA on ", *METRICS, "## Table 3", "report.html"),
    "lora-dist doctor": ("ok  devices", "ok  java", "ok  2 processes", "ok  start with"),
    "lora-dist plan": ("peak memory per process", "sent per step", "learning rate", "checkpoints"),
    "launch/ddp.sh": (*METRICS, "## Table 3", ", improved", "this report", "report.html"),
}
"""What each command prints according to the README."""


def quickstart() -> tuple[list[str], str]:
    """The commands of the section, in order, and its text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Quickstart\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()], text


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository with an environment as `launch/setup.sh` leaves it, of the packages of this one."""
    folder = tmp_path / "lora-dist"
    for name in ("accelerate_configs", "launch", "lora_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = [ROOT / name for name in ("pyproject.toml", "constraints.txt")]
    for file in files:
        shutil.copy(file, folder)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, line in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH" PYTHONPATH="{folder}"\n')
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + b"\n").hexdigest()
    (folder / ".venv" / "installed-base").write_text(f"{wanted}\n")
    return folder


def test_the_quickstart_runs_in_order_and_leaves_what_the_readme_says(checkout: Path) -> None:
    commands, text = quickstart()
    assert len(commands) == 1 + len(SAID)  # setup.sh has nothing to say
    demo = checkout / "runs" / "demo"
    base, data = (SHARED / "mini-gpt2", SHARED / "e2e") if SHARED.is_dir() else (demo / "base", demo / "corpus")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    session = ["set -e"]  # what setup.sh activates is active in the next commands
    for command in commands:
        small = f" --model.name {base} --data.dir {data} {SMALL}" if " improved" in command else ""
        done = subprocess.run(
            ["bash", "-c", "\n".join([*session, command + small])],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command.endswith("activate"):
            session.append(command)
            continue
        (expected,) = [words for start, words in SAID.items() if start in command]
        assert [words for words in expected if words not in done.stdout] == [], (command, done.stdout)
        if SHARED.is_dir() and "ddp.sh" in command:  # published rows stand next to runs on E2E only
            assert "| Improved, paper |" in done.stdout
            assert "| Prefix-tuning |" in done.stdout
    reports = re.findall(r"`(runs/\S+/report\.html)`", text)
    assert reports
    assert all((checkout / report).is_file() for report in reports)
