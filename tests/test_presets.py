"""A preset is one entry of `PRESETS`, and a strategy one of `STRATEGIES`: all else derives from them."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import made_run

from lora_dist.cli.main import main
from lora_dist.config_io import command_line, nearest_preset
from lora_dist.distributed.launcher import STRATEGIES, Strategy
from lora_dist.planning.plan import make_plan
from lora_dist.presets import IMPROVED, PRESETS, Preset
from lora_dist.report.configurations import configurations
from lora_dist.report.results import load_results
from lora_dist.report.tables import adapter_table
from lora_dist.workflows.settings import ReproduceCommand
from lora_dist.workflows.verify import cases_here

SMALLEST = replace(IMPROVED, lora=replace(IMPROVED.lora, rank=1, targets=("c_fc",)))


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "smallest", Preset(SMALLEST, "rank 1 on c_fc", "Smallest, nobody", "46k on Small"))


@pytest.fixture
def zero2_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "zero2_offload", Strategy("zero2_offload", zero_stage=2, offload=True))


@pytest.mark.usefixtures("smallest")
@pytest.mark.parametrize("command", ["run", "train", "plan"])
def test_help_names_a_new_preset_and_what_it_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "{baseline,improved,original,smallest}" in text
    assert "rank 1 on c_fc" in text


@pytest.mark.usefixtures("smallest")
def test_a_new_preset_is_parsed_and_planned(tiny_gpt2: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smallest", "--model.name", str(tiny_gpt2), "--data.dir", str(corpus)]) == 0
    assert f"{2 * (32 + 128):,} trainable" in capsys.readouterr().out  # 2 layers of r (in + out)
    assert main(["plan", "largest"]) == 2
    assert "give one of baseline, improved, original, smallest, as in lora-dist plan" in capsys.readouterr().err


@pytest.mark.usefixtures("smallest")
def test_a_new_preset_is_a_column_of_table_1_and_the_name_of_its_runs(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", SMALLEST)
    table = adapter_table(configurations(load_results([run])))
    assert table.head[1:5] == ("Baseline, paper", "Improved, paper", "Original, LoRA authors", "Smallest, nobody")
    assert "46k on Small" in table.rows[-1]
    assert nearest_preset(SMALLEST) == "smallest"
    assert command_line(SMALLEST).startswith("run smallest")


@pytest.mark.usefixtures("smallest")
def test_reproduce_takes_a_new_preset_and_refuses_an_unknown_one() -> None:
    assert ReproduceCommand(presets=("smallest",)).presets == ("smallest",)
    with pytest.raises(ValueError, match="--presets is largest: choose from baseline, improved, original, smallest"):
        ReproduceCommand(presets=("largest",))


@pytest.mark.usefixtures("zero2_offload")
def test_a_new_strategy_is_planned_verified_and_launched(tiny_gpt2: Path, corpus: Path) -> None:
    settings = replace(
        IMPROVED, model=replace(IMPROVED.model, name=str(tiny_gpt2)), data=replace(IMPROVED.data, dir=corpus)
    )
    plan = make_plan(settings, 2, "cpu", "fp32", None)
    assert plan.memory.keys() == plan.sent.keys() == STRATEGIES.keys()
    assert plan.sent["zero2_offload"] == plan.sent["zero2"]
    assert "zero2_offload, 2 x 1" in map(str, cases_here([2], [1]))
    assert ReproduceCommand(strategy="zero2_offload").strategy == "zero2_offload"
    with pytest.raises(ValueError, match="--strategy is zero4: choose from ddp, zero1, zero2"):
        ReproduceCommand(strategy="zero4")
    assert STRATEGIES["zero2_offload"].launch_options()[:3] == ["--use_deepspeed", "--zero_stage", "2"]
