"""Runs made from an existing adapter: another run's, to decode it differently, or one that PEFT trained."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_dist.config import ModelSettings, Settings
from lora_dist.config_io import read_settings, to_json, versions
from lora_dist.errors import UserError
from lora_dist.files import PART, new_folder, read_json, write_json, write_text
from lora_dist.model.adapter import ADAPTER_CONFIG, load_adapter_state, read_adapter_settings
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir
from lora_dist.run_guard import require_folder


def source_settings(source: Path, target: Path | None) -> Settings:
    """Return the settings of a run, or those that the config of an adapter contains.

    Args:
        source: folder of a run or of an adapter.
        target: folder for the sentences; None is the run itself.

    Raises:
        UserError: if the folder is neither, or that of an adapter and there is no target.
    """
    if not _is_adapter(source):
        return read_settings(RunDir(source))
    if target is None:
        raise UserError(f"{source} is an adapter, not a run: add --out RUN, the folder for its sentences")
    base = read_json(source / ADAPTER_CONFIG, f"{source} holds no adapter").get("base_model_name_or_path")
    model = ModelSettings() if base is None else ModelSettings(name=base)
    return replace(Settings(), model=model, lora=read_adapter_settings(source))


def derive_run(target: RunDir, source: Path, settings: Settings) -> None:
    """Make `target` a run with the adapter of `source`, to be decoded with `settings`.

    Args:
        target: the new run directory.
        source: folder of a run or of an adapter.
        settings: settings of the new run.

    Raises:
        UserError: if there is no adapter, or `target` holds anything but an earlier copy.
    """
    adapter = source if _is_adapter(source) else RunDir(source).adapter
    if not adapter.is_dir():
        raise UserError(f"{adapter} is missing: train first, or resume with train --resume")
    require_folder(target)
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
    """Return whether `target` is empty, or has this adapter and no checkpoints, which a trained run would have."""
    if all(path.name.startswith(PART) for path in target.root.iterdir()):
        return True
    theirs, own = (folder / ADAPTER_WEIGHTS for folder in (adapter, target.adapter))
    return not target.checkpoints.exists() and own.is_file() and own.read_bytes() == theirs.read_bytes()


def _foreign_config(adapter: Path) -> dict[str, Any]:
    """Build the config.json of an adapter that was trained elsewhere, with unknown world and data."""
    trainable = sum(tensor.numel() for tensor in load_adapter_state(adapter).values())
    return {"counts": {"trainable": trainable}, "world": None, "data": {}, "versions": versions()}
