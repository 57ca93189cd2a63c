"""Settings as JSON for the files of a run, and as the words of a command line."""

import dataclasses
import shlex
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lora_dist.config import PRESETS, Settings, UserError, flag

T = TypeVar("T")

WITHOUT_EFFECT = frozenset(
    flag("train", name)
    for name in (
        "accumulation_steps",
        "gradient_checkpointing",
        "deterministic",
        "log_steps",
        "checkpoint_steps",
        "keep_checkpoints",
        "profile",
        "tracker",
    )
)
"""Options of a training that change no trained number, but for rounding."""


def to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON values."""
    return {
        f.name: to_json(value)
        if dataclasses.is_dataclass(value := getattr(settings, f.name))
        else str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in dataclasses.fields(settings)
    }


def from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """The settings dataclass `cls` from what `to_json` made.

    Raises:
        UserError: if `values` names a setting that `cls` does not have.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{cls.__name__} has no setting {', '.join(unknown)}: the file was written by another version")
    return cls(**{name: _from_json_value(hints[name], value) for name, value in values.items()})


def _from_json_value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]
    if value is not None and Path in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def as_options(settings: Settings, *sections: str) -> dict[str, Any]:
    """Settings by the names that they have on the command line, without the paths, which a machine may have its own."""
    return {
        flag(section, key): value
        for section in sections
        for key, value in to_json(getattr(settings, section)).items()
        if (section, key) not in (("model", "name"), ("data", "dir"))
    }


def nearest_preset(settings: Settings) -> str:
    """The name of the preset from whose adapter the settings differ least."""
    own = as_options(settings, "lora")
    return min(PRESETS, key=lambda name: len(_changed(own, as_options(PRESETS[name], "lora"))))


def changed_options(settings: Settings) -> dict[str, Any]:
    """What differs from the nearest preset, and where base model and data lie, by name on the command line."""
    sections = [field.name for field in dataclasses.fields(Settings)]
    preset = PRESETS[nearest_preset(settings)]
    changed = _changed(as_options(settings, *sections), as_options(preset, *sections))
    places = {"--model.name": settings.model.name}
    if settings.data.dir is not None:
        places["--data.dir"] = str(settings.data.dir)
    return {**places, **changed}


def to_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(name if value else name.replace(".", ".no-", 1))
        else:
            words += [name, *map(str, value if isinstance(value, list) else [value])]
    return words


def command_line(settings: Settings) -> str:
    """The words that follow `lora-dist` to make a run with these settings."""
    return shlex.join(["run", nearest_preset(settings), *to_arguments(changed_options(settings))])


def _changed(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value != others[name]}
