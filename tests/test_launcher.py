import subprocess
from pathlib import Path
from typing import get_args

import pytest
import yaml
from launching import CONFIGS

from lora_dist.launcher import Strategy, launch_command

REPORT = """
import os
from accelerate import PartialState
names = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DEEPSPEED_ZERO_STAGE")
print("found", [os.environ.get(name) for name in names])
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_starts_as_many_processes_as_asked(processes: int, tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    done = subprocess.run(
        [*launch_command(processes, "ddp", "fp32"), script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("found")]
    world = "None" if processes == 1 else f"'{processes}'"
    assert found == [f"found [{world}, 'no', None]"] * processes


@pytest.mark.parametrize("strategy", [name for name in get_args(Strategy) if name != "ddp"])
def test_options_say_what_the_shipped_configs_say(strategy: Strategy) -> None:
    config = yaml.safe_load((CONFIGS / f"{strategy}.yaml").read_text())["deepspeed_config"]
    options = launch_command(2, strategy)
    assert options[options.index("--zero_stage") + 1] == str(config["zero_stage"])
    for part in ("optimizer", "param"):
        flag = f"--offload_{part}_device"
        asked = options[options.index(flag) + 1] if flag in options else "none"
        assert asked == config[f"offload_{part}_device"]
