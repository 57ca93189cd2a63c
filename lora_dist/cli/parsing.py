"""From the words of a command line to a command, with a preset's or a run's settings as the defaults."""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import tyro

from lora_dist.cli.commands import DecodeCommand, GenerateCommand, MergeCommand
from lora_dist.config import PRESETS, Settings, UserError

S = TypeVar("S", bound=Settings)
C = TypeVar("C", DecodeCommand, GenerateCommand, MergeCommand)


def parse_with_preset(command: type[S], name: str, summary: str | None, argv: Sequence[str]) -> S:
    """The command whose first word is a preset, with what is changed of that.

    Args:
        command: the sections of a preset, and more.
        name: of the command, as it is typed.
        summary: what its help says first.
        argv: the words after the name.

    Raises:
        UserError: if the first word is no preset.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(
            f"usage: lora-dist {name} {{baseline,improved}} [settings]\n\n{(summary or '').strip()}\n\n"
            "  baseline  Table 1 of the paper: rank 4, c_attn, original initialisation\n"
            "  improved  Table 1 of the paper: rank 16, c_attn, c_proj and c_fc, Gaussian initialisation\n\n"
            f"Settings and their defaults: lora-dist {name} improved --help"
        )
        sys.exit(0 if argv else 2)
    if argv[0] not in PRESETS:
        raise UserError(f"{argv[0]} is not a preset: give lora-dist {name} baseline or lora-dist {name} improved first")
    preset = PRESETS[argv[0]]
    default = command(**{f.name: getattr(preset, f.name) for f in fields(preset)})
    return tyro.cli(command, prog=f"lora-dist {name} {argv[0]}", args=argv[1:], default=default)


def parse_again(parsed: C, saved: Settings, name: str, argv: Sequence[str]) -> C:
    """The command with the settings of a run as its defaults: the first time, it told which run it is about."""
    sections = {f.name: getattr(saved, f.name) for f in fields(parsed) if f.name in ("model", "data", "decode")}
    return tyro.cli(type(parsed), prog=f"lora-dist {name}", args=argv, default=replace(parsed, **sections))
