import shlex
from pathlib import Path

import pytest
from launching import before_all_else

from lora_dist.cli.arguments import TrainCommand
from lora_dist.cli.main import main
from lora_dist.cli.parsing import parse_with_preset

pytestmark = pytest.mark.launched


def test_this_machine_has_what_a_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["ok"] * 6
    assert lines[-2].endswith("joined and all-reduced a number")
    commands = lines[-1].removeprefix("ok  start with   ").split(", then ")
    demo, run = (shlex.split(command) for command in commands)
    assert demo == ["lora-dist", "demo"]
    assert run[:2] == ["lora-dist", "run"]
    settings = parse_with_preset(TrainCommand, "run", "", run[2:])
    assert settings.train.warmup_steps < (settings.train.max_steps or 0) <= 100


def test_processes_that_do_not_find_each_other_report_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
        import torch.distributed as distributed
        def refused(*_, **__): raise ConnectionError('no route to the other process')
        distributed.init_process_group = refused
    """
    for name, value in before_all_else(tmp_path, code).items():
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 1
    line = capsys.readouterr().out.splitlines()[-2]
    assert line.startswith("NO  2 processes  failed:")
    assert line.endswith("ConnectionError: no route to the other process")
