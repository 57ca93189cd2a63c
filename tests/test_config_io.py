"""Settings through JSON and back, and through the words of a command line and back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_dist.cli.commands import TrainCommand
from lora_dist.cli.parsing import parse_with_preset
from lora_dist.config import BASELINE, DataSettings, DecodeSettings, IMPROVED, LoraSettings, ModelSettings, PRESETS, Settings, TrainSettings
from lora_dist.config_io import WITHOUT_EFFECT, as_options, changed_options, command_line, from_json, nearest_preset, to_arguments, to_json
from lora_dist.errors import UserError


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


def test_a_preset_needs_no_words_but_its_name_and_the_model() -> None:
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
def test_the_words_of_a_command_line_give_the_settings_again(settings: Settings) -> None:
    name = nearest_preset(settings)
    words = to_arguments(changed_options(settings))
    assert parse_with_preset(TrainCommand, "train", None, [name, *words]).sections() == settings


def test_the_nearest_preset_is_the_one_with_most_in_common() -> None:
    assert nearest_preset(replace(IMPROVED, lora=replace(IMPROVED.lora, rank=8))) == "improved"
    assert nearest_preset(replace(IMPROVED, lora=replace(BASELINE.lora, dropout=0.2))) == "baseline"


def test_options_without_effect_are_options() -> None:
    assert set(as_options(PRESETS["baseline"], "train")) > WITHOUT_EFFECT
