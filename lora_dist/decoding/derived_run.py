"""Runs made from an existing adapter: another run's, to decode it differently, or one that PEFT trained."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_dist.config import ModelSettings, Settings
from lora_dist.config_io import read_config, read_settings, to_json, versions
from lora_dist.errors import UserError
from lora_dist.files import new_folder, read_json, write_bytes, write_json, write_text
from lora_dist.model.adapter import ADAPTER_FILES, load_adapter_state
from lora_dist.model.adapter_config import ADAPTER_CONFIG, read_adapter_settings
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir
from lora_dist.run_guard import has_content, is_run, require_folder, require_writable


def is_adapter(source: Path) -> bool:
    """Return whether a folder is an adapter: PEFT's, a run's `adapter`, or a checkpoint."""
    return (source / ADAPTER_CONFIG).is_file()


def adapter_folder(source: Path) -> Path:
    """Return the folder of the adapter of a run, or `source` itself if it is an adapter.

    Raises:
        UserError: if there is no adapter.
    """
    adapter = source if is_adapter(source) else RunDir(source).adapter
    if not adapter.is_dir():
        raise UserError(f"{adapter} is missing: train first, or resume with train --resume")
    return adapter


def source_settings(source: Path) -> Settings:
    """Return the settings of a run, or those that the config of an adapter contains.

    Raises:
        UserError: if the folder is neither.
    """
    if not is_adapter(source):
        return read_settings(RunDir(source))
    base = read_json(source / ADAPTER_CONFIG, f"{source} holds no adapter").get("base_model_name_or_path")
    model = ModelSettings() if base is None else ModelSettings(name=base)
    return replace(Settings(), model=model, lora=read_adapter_settings(source, load_adapter_state(source)))


@contextmanager
def derived_run(target: RunDir, source: Path, settings: Settings) -> Iterator[None]:
    """Make `target` a run with the adapter of `source`, to be decoded with `settings` in the block.

    If the block refuses the adapter or the settings, the target is again as it was.

    Args:
        target: the new run directory.
        source: folder of a run or of an adapter.
        settings: settings of the new run.

    Raises:
        UserError: if there is no adapter, or `target` holds anything but an earlier copy.
    """
    adapter = adapter_folder(source)
    require_folder(target)
    require_writable(target.root)
    if has_content(target.root) and not _is_copy(target, adapter):
        raise UserError(f"--out {target.root} is no copy of {source}: name another folder")
    config = _foreign_config(adapter) if is_adapter(source) else read_config(RunDir(source))
    before = target.config.read_bytes() if target.config.is_file() else None
    try:
        with new_folder(target.adapter) as folder:
            for name in ADAPTER_FILES:
                if (adapter / name).is_file():
                    shutil.copyfile(adapter / name, folder / name)
        if RunDir(source).metrics.is_file():
            write_text(target.metrics, RunDir(source).metrics.read_text(encoding="utf-8"))
        write_json(target.config, {**config, "settings": to_json(settings)})
        yield
    except UserError:
        if before is None:
            shutil.rmtree(target.adapter, ignore_errors=True)
            for file in (target.config, target.metrics):
                file.unlink(missing_ok=True)
        else:
            write_bytes(target.config, before)
        raise


def _is_copy(target: RunDir, adapter: Path) -> bool:
    """Return whether `target` has a copy of this adapter and no checkpoints, which a trained run would have."""
    theirs, own = (folder / ADAPTER_WEIGHTS for folder in (adapter, target.adapter))
    if not (own.is_file() and theirs.is_file()) or own.samefile(theirs):
        return False
    begun = is_run(target.root) or not target.config.exists()  # a kill may have come before its config.json
    return begun and not target.checkpoints.exists() and own.read_bytes() == theirs.read_bytes()


def _foreign_config(adapter: Path) -> dict[str, Any]:
    """Build the config.json of an adapter that was trained elsewhere, with unknown world and data."""
    matrices = {name: tensor for name, tensor in load_adapter_state(adapter).items() if ".lora_" in name}
    trainable = sum(tensor.numel() for tensor in matrices.values())
    return {"counts": {"trainable": trainable}, "world": None, "data": {}, "versions": versions()}
