"""The help before a preset is chosen names settings that exist, with the defaults that they have."""

import re
import shlex
from dataclasses import fields
from typing import Any

import pytest

from lora_dist.cli.arguments import PlanCommand, SweepCommand, TrainCommand
from lora_dist.cli.main import COMMANDS, main
from lora_dist.cli.parsing import parse_with_preset
from lora_dist.cli.usage import MAIN_SETTINGS

CLASSES: dict[str, Any] = {"run": TrainCommand, "train": TrainCommand, "sweep": SweepCommand, "plan": PlanCommand}


@pytest.mark.parametrize("name", MAIN_SETTINGS)
def test_the_help_before_a_preset_says_what_it_does_how_to_start_and_where_all_settings_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert (COMMANDS[name].__doc__ or "").strip() in text
    assert f"lora-dist {name} baseline --help" in text
    words = shlex.split(re.search("^example: (.*)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert words[:2] == ["lora-dist", name]
    parse_with_preset(CLASSES[name], name, "", words[2:])

    default = parse_with_preset(CLASSES[name], name, "", ["baseline"])
    flags = set(re.findall(r"--([a-z-]+)(?=[ ,\n])", text.split("main settings")[1].split("example")[0]))
    assert {flag.replace("-", "_") for flag in flags} <= {field.name for field in fields(default)}
    for flag, shown in re.findall(r"^  --([a-z-]+) .*\(([^:)]*)", text, re.MULTILINE):
        value = getattr(default, flag)
        assert (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) == shown


def test_settings_without_a_preset_are_refused_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--lora.rank", "4"]) == 2
    assert capsys.readouterr().err.startswith("lora-dist: the preset is missing: give one of baseline, improved,")


def test_every_command_without_a_preset_shows_its_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run"], ["sweep"], ["bench", "train"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert f"usage: lora-dist {' '.join(words)} {{baseline," in capsys.readouterr().out
