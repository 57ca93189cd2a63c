"""Runs made from an adapter that is there already: another run's, to decode it otherwise, or one that PEFT trained."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_dist.config import ModelSettings, Settings, UserError
from lora_dist.config_io import to_json
from lora_dist.files import PART, new_folder, read_json, write_json, write_text
from lora_dist.model.base import ADAPTER_CONFIG, load_adapter_state, read_adapter_settings
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir, versions


def saved_settings(source: Path, target: Path | None) -> Settings:
    """The settings of a run, or for the folder of an adapter alone what that says of them.

    Args:
        source: the folder.
        target: where the sentences go; None is into the run.

    Raises:
        UserError: if it is neither, or an adapter alone that is to take sentences.
    """
    if not _is_adapter(source):
        return RunDir(source).settings()
    if target is None:
        raise UserError(f"{source} is an adapter, not a run: add --out RUN, the folder for its sentences")
    base = read_json(source / ADAPTER_CONFIG, f"{source} holds no adapter").get("base_model_name_or_path")
    model = ModelSettings() if base is None else ModelSettings(name=base)
    return replace(Settings(), model=model, lora=read_adapter_settings(source))


def copy_to(target: RunDir, source: Path, settings: Settings) -> None:
    """Make `target` a run with the adapter of `source`, a run or an adapter alone, to be decoded with `settings`.

    Raises:
        UserError: if there is no adapter, or `target` holds something else than an earlier copy.
    """
    adapter = source if _is_adapter(source) else RunDir(source).adapter
    if not adapter.is_dir():
        raise UserError(f"{adapter} is missing: train first, or go on with train --resume")
    target.require_folder()
    if target.root.exists() and not _may_become_copy(target, adapter):
        raise UserError(f"--out {target.root} is no copy of {source}: name another folder")
    config = _foreign_config(adapter) if _is_adapter(source) else read_json(RunDir(source).config, "no run")
    with new_folder(target.adapter) as folder:
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
    if RunDir(source).metrics.is_file():
        write_text(target.metrics, RunDir(source).metrics.read_text(encoding="utf-8"))
    write_json(target.config, {**config, "settings": to_json(settings)})


def _is_adapter(source: Path) -> bool:
    return (source / ADAPTER_CONFIG).is_file()


def _may_become_copy(target: RunDir, adapter: Path) -> bool:
    """Whether `target` has nothing yet, or this adapter and no checkpoints, as a training would have."""
    if all(path.name.startswith(PART) for path in target.root.iterdir()):
        return True
    theirs, own = (folder / ADAPTER_WEIGHTS for folder in (adapter, target.adapter))
    return not target.checkpoints.exists() and own.is_file() and own.read_bytes() == theirs.read_bytes()


def _foreign_config(adapter: Path) -> dict[str, Any]:
    """What config.json says of an adapter that was trained elsewhere: nothing of world and data."""
    trainable = sum(tensor.numel() for tensor in load_adapter_state(adapter).values())
    return {"counts": {"trainable": trainable}, "world": None, "data": {}, "versions": versions()}
