"""Settings as JSON and back, as arguments of a command line and back, and config.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_dist.cli.arguments import TrainCommand
from lora_dist.cli.parsing import parse_with_preset
from lora_dist.config import DataSettings, DecodeSettings, LoraSettings, ModelSettings, Settings, TrainSettings
from lora_dist.config_io import (
    WITHOUT_EFFECT,
    as_options,
    changed_options,
    command_line,
    from_json,
    nearest_preset,
    read_settings,
    to_arguments,
    to_json,
    versions,
    write_config,
)
from lora_dist.errors import UserError
from lora_dist.presets import BASELINE, IMPROVED
from lora_dist.run_dir import RunDir


@pytest.mark.parametrize(
    "settings",
    [
        BASELINE,
        IMPROVED,
        Settings(
            model=ModelSettings(name="folder/gpt2", dropout=0.0),
            data=DataSettings(dir=Path("some/folder"), limit_train=3),
            train=TrainSettings(max_steps=7, max_grad_norm=1.5, deterministic=False),
            decode=DecodeSettings(limit=2, early_stopping="never", ngram_scope="all"),
        ),
    ],
)
def test_settings_survive_json(settings: Settings) -> None:
    assert from_json(Settings, json.loads(json.dumps(to_json(settings)))) == settings


@pytest.mark.parametrize("section", [None, "train"])
def test_an_unknown_setting_in_a_file_is_refused_by_name(section: str | None) -> None:
    values = to_json(BASELINE)
    (values if section is None else values[section])["momentum"] = 0.9
    with pytest.raises(UserError, match=r"(TrainS|S)ettings has no setting momentum"):
        from_json(Settings, values)


def test_values_from_a_file_are_checked_like_those_from_the_command_line() -> None:
    values = to_json(BASELINE)
    values["lora"]["rank"] = 0
    with pytest.raises(UserError, match=r"--lora\.rank is 0"):
        from_json(Settings, values)


def test_a_presets_command_line_has_only_its_name_and_the_model() -> None:
    assert command_line(IMPROVED) == "run improved --model.name gpt2"
    assert command_line(BASELINE) == "run baseline --model.name gpt2"


@pytest.mark.parametrize(
    "settings",
    [
        Settings(
            model=ModelSettings(name="a folder/gpt2", dropout=None),
            data=DataSettings(dir=Path("some folder"), limit_train=3),
            train=TrainSettings(max_steps=7, max_grad_norm=1.5, deterministic=False, gradient_checkpointing=True),
            decode=DecodeSettings(limit=2, early_stopping="never", ngram_scope="all", precision="bf16"),
        ),
        replace(IMPROVED, lora=replace(IMPROVED.lora, rank=8, targets=("c_attn", "c_fc"))),
        replace(BASELINE, lora=LoraSettings(dropout=0.0)),
    ],
)
def test_the_arguments_of_a_command_line_give_the_settings_again(settings: Settings) -> None:
    name = nearest_preset(settings)
    arguments = to_arguments(changed_options(settings))
    assert parse_with_preset(TrainCommand, "train", None, [name, *arguments]).sections() == settings


def test_the_nearest_preset_has_most_adapter_settings_in_common() -> None:
    assert nearest_preset(replace(IMPROVED, lora=replace(IMPROVED.lora, rank=8))) == "improved"
    assert nearest_preset(replace(IMPROVED, lora=replace(BASELINE.lora, dropout=0.2))) == "baseline"


def test_options_without_effect_are_options() -> None:
    assert set(as_options(BASELINE, "train")) > WITHOUT_EFFECT


# config.json


def test_config_json_gives_the_settings_back_with_world_data_counts_and_versions(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_config(run, IMPROVED, {"size": 2}, {"train": "abc"}, {"trainable": 7})
    assert read_settings(run) == IMPROVED
    stored = json.loads(run.config.read_text())
    assert (stored["world"], stored["data"], stored["counts"]) == ({"size": 2}, {"train": "abc"}, {"trainable": 7})
    assert stored["versions"] == versions()
    assert {"lora_dist", "python", "torch", "transformers", "accelerate"} <= versions().keys()


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_a_folder_without_a_readable_config_is_no_run(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=f"{tmp_path} is not the folder of a run: .*config.json"):
        read_settings(RunDir(tmp_path))
