"""Parse command-line arguments, with the settings of a preset or of a run as the defaults."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from itertools import pairwise
from typing import TypeVar

import tyro

from lora_dist.cli.arguments import DecodeCommand, GenerateCommand, JsonCommand, MergeCommand
from lora_dist.cli.refusal import refusal
from lora_dist.cli.usage import usage
from lora_dist.config import Settings
from lora_dist.distributed.logs import LogSettings, set_up_logging
from lora_dist.errors import USER_ERROR, UserError
from lora_dist.presets import PRESETS
from lora_dist.run_guard import require_writable_file

T = TypeVar("T", bound=LogSettings)
S = TypeVar("S", bound=Settings)
C = TypeVar("C", DecodeCommand, GenerateCommand, MergeCommand)


def parse(command: type[T], name: str, argv: Sequence[str], default: T | None = None) -> T:
    """Parse the arguments of a command, and set the log level that they give.

    Args:
        command: dataclass of the arguments.
        name: the command as typed, for the help.
        argv: the arguments after the name.
        default: values of arguments that are not given.

    Raises:
        UserError: if an argument is unknown, has a wrong value or is empty, as from a shell variable that is not set,
            or --json cannot be written.
    """
    for before, argument in pairwise([name, *argv]):
        if not argument.strip() or re.fullmatch(r"--[^=]+=\s*", argument):
            flag = argument.strip().removesuffix("=") or (
                before if before.startswith("--") else f"an argument of {name}"
            )
            raise UserError(f"{flag} is empty: give a value, or leave it out")
    given = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            parsed: T = tyro.cli(command, prog=f"lora-dist {name}", args=argv, **given)  # type: ignore[call-overload]
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise refusal(stop, printed.getvalue(), name) from None
    set_up_logging(parsed.log_level)
    if isinstance(parsed, JsonCommand) and parsed.json is not None:
        require_writable_file(parsed.json, "--json")
    return parsed


def parse_with_preset(command: type[S], name: str, summary: str | None, argv: Sequence[str]) -> S:
    """Parse the arguments of a command whose first argument is a preset.

    Args:
        command: dataclass of the arguments, with the sections of a preset.
        name: the command as typed, for the help.
        summary: what it does, for the help.
        argv: the arguments after the name.

    Raises:
        UserError: if the first argument is no preset.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(name, (summary or "").strip()))
        sys.exit(0 if argv else USER_ERROR)
    if argv[0] not in PRESETS:
        wrong = "the preset is missing" if argv[0].startswith("-") else f"{argv[0]} is not a preset"
        raise UserError(f"{wrong}: give one of {', '.join(PRESETS)}, as in lora-dist {name} improved")
    preset = PRESETS[argv[0]].settings
    default = command(**{f.name: getattr(preset, f.name) for f in fields(preset)})
    return parse(command, f"{name} {argv[0]}", argv[1:], default)  # type: ignore[type-var]


def parse_with_settings(parsed: C, saved: Settings, name: str, argv: Sequence[str]) -> C:
    """Parse again with the settings of a run as the defaults, once the first pass has found which run it is."""
    sections = {f.name: getattr(saved, f.name) for f in fields(parsed) if f.name in ("model", "data", "decode")}
    return parse(type(parsed), name, argv, replace(parsed, **sections))
