"""Settings as JSON for the files of a run, and as command-line arguments."""

import dataclasses
import platform
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from lora_dist import __version__
from lora_dist.config import Settings, flag
from lora_dist.errors import UserError
from lora_dist.files import read_json, write_json
from lora_dist.presets import PRESETS
from lora_dist.run_dir import RunDir

T = TypeVar("T")

WITHOUT_EFFECT = frozenset(
    flag("train", name)
    for name in (
        "accumulation_steps",
        "gradient_checkpointing",
        "cuda_graphs",
        "deterministic",
        "log_steps",
        "checkpoint_steps",
        "keep_checkpoints",
        "profile",
        "score_dev",
        "tracker",
    )
)
"""Training options that change the adapter by rounding at most."""


def to_json(settings: Any) -> dict[str, Any]:
    """Convert a settings dataclass to plain JSON values."""
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
    """Build the settings dataclass `cls` from the output of `to_json`.

    Raises:
        UserError: if `values` has a setting that `cls` does not have, or an invalid value.
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


def read_config(run: RunDir) -> dict[str, Any]:
    """Read config.json.

    Raises:
        UserError: if this is not the folder of a run.
    """
    problem = f"{run.root} is not the folder of a run"
    config = read_json(run.config, problem)
    if not isinstance(config.get("settings"), dict):
        raise UserError(f"{problem}: its config.json is not a run's, but perhaps a model's")
    return config


def read_settings(run: RunDir) -> Settings:
    """Read the settings that a run was started with.

    Raises:
        UserError: if this is not the folder of a run.
    """
    return from_json(Settings, read_config(run)["settings"])


def write_config(
    run: RunDir,
    settings: Settings,
    world: Mapping[str, Any],
    data: Mapping[str, str],
    counts: Mapping[str, int],
    *,
    earlier_worlds: Sequence[Mapping[str, Any]] = (),
    launch: Sequence[str] = (),
) -> None:
    """Write config.json: the resolved settings, and the world, data and versions they were used with.

    Args:
        run: the run directory.
        settings: all settings.
        world: see `World.describe`.
        data: fingerprint of each split.
        counts: `trainable` parameters and `steps`.
        earlier_worlds: the worlds that this one resumes from, each with `until_step`.
        launch: see `launch_round.LaunchRound.agents`.
    """
    write_json(
        run.config,
        {
            "settings": to_json(settings),
            "counts": dict(counts),
            "world": dict(world),
            "earlier_worlds": list(earlier_worlds),
            "data": dict(data),
            "versions": versions(),
            "launch": list(launch),
        },
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    names = ("torch", "transformers", "accelerate", "deepspeed", "numpy", "tokenizers")
    found = {"lora_dist": __version__, "python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def as_options(settings: Settings, *sections: str) -> dict[str, Any]:
    """Return settings by their command-line names, without the paths (which may differ between machines)."""
    return {
        flag(section, key): value
        for section in sections
        for key, value in to_json(getattr(settings, section)).items()
        if (section, key) not in (("model", "name"), ("data", "dir"))
    }


def nearest_preset(settings: Settings) -> str:
    """Return the name of the preset whose adapter settings differ least from these."""
    own = as_options(settings, "lora")
    return min(PRESETS, key=lambda name: len(_changed(own, as_options(PRESETS[name].settings, "lora"))))


def changed_options(settings: Settings) -> dict[str, Any]:
    """Return the options that differ from the nearest preset, and the paths of base model and data."""
    sections = [field.name for field in dataclasses.fields(Settings)]
    preset = PRESETS[nearest_preset(settings)].settings
    changed = _changed(as_options(settings, *sections), as_options(preset, *sections))
    paths = {"--model.name": settings.model.name}
    if settings.data.dir is not None:
        paths["--data.dir"] = str(settings.data.dir)
    return {**paths, **changed}


def to_arguments(options: Mapping[str, Any]) -> list[str]:
    """Convert options to command-line arguments."""
    arguments: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            arguments.append(name if value else name.replace(".", ".no-", 1))
        else:
            arguments += [name, *map(str, value if isinstance(value, list) else [value])]
    return arguments


def command_line(settings: Settings) -> str:
    """Return the arguments after `lora-dist` that start a run with these settings."""
    return shlex.join(["run", nearest_preset(settings), *to_arguments(changed_options(settings))])


def _changed(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value != others[name]}
