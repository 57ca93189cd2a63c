import json
import subprocess
from pathlib import Path

import pytest
import yaml
from launching import CONFIGS

from lora_dist.distributed.launcher import STRATEGIES, Strategy, failure_reason, launch_command

REPORT = """
import json, os, pathlib, sys
names = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DEEPSPEED_ZERO_STAGE")
found = pathlib.Path(sys.argv[1], os.environ.get("RANK", "0") + ".json")
found.write_text(json.dumps([os.environ.get(name) for name in names]))
"""


@pytest.mark.launched
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_starts_that_many_processes(processes: int, tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    done = subprocess.run(
        [*launch_command(processes, precision="fp32"), script, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A file per rank: lines that several ranks print into one pipe are interleaved.
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    world = None if processes == 1 else str(processes)
    assert found == [[world, "no", None]] * processes
    assert len(list(tmp_path.glob("*.json"))) == processes


def test_the_table_of_strategies_has_a_config_for_each_name() -> None:
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    for name, strategy in STRATEGIES.items():
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert config["distributed_type"] == ("DEEPSPEED" if strategy.zero_stage else "MULTI_GPU")


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES.values() if s.zero_stage], ids=lambda s: s.name)
def test_the_options_are_those_of_the_shipped_configs(strategy: Strategy) -> None:
    config = yaml.safe_load((CONFIGS / f"{strategy.name}.yaml").read_text())["deepspeed_config"]
    options = launch_command(2, strategy)
    assert options[options.index("--zero_stage") + 1] == str(config["zero_stage"])
    for part in ("optimizer", "param"):
        flag = f"--offload_{part}_device"
        device = options[options.index(flag) + 1] if flag in options else "none"
        assert device == config[f"offload_{part}_device"]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("noise\nlora-dist: the disk is full\n[rank0]: ValueError: not that\n=====\n", "the disk is full"),
        (
            "Traceback\n  x = 1\nRuntimeError: no network\n  raise\nChildFailedError: later\n=====\n",
            "RuntimeError: no network",
        ),
        ("=====\n", "exit code 3"),
        ("", "exit code 3"),
    ],
)
def test_the_failure_reason_is_the_first_cause(errors: str, reason: str) -> None:
    assert failure_reason(subprocess.CompletedProcess([], 3, "", errors)) == reason
