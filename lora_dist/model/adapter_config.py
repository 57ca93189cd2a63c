"""PEFT's adapter_config.json: what `LoraConv1D` computes exactly as PEFT does; all else is refused by name."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lora_dist.config import LoraSettings
from lora_dist.errors import UserError
from lora_dist.files import read_json
from lora_dist.model.lora import PEFT_PREFIX

ADAPTER_CONFIG = "adapter_config.json"

ANY_VALUE = frozenset(
    {
        "alpha_pattern",  # checked below, as is each of the next ones
        "bias",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "use_dora",
        "use_rslora",
        # These choose the layers, which the saved matrices name as well.
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        # These have no effect on what the saved matrices compute.
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "task_type",
    }
)
"""Fields that are harmless at any value, or checked one by one; any other has to be off (null, false, empty)."""

INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Those that leave the base model's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and others change them."""


def read_adapter_settings(folder: Path, matrices: Collection[str] = ()) -> LoraSettings:
    """Read the shape of the adapter in `folder` from its adapter_config.json.

    Args:
        folder: of the adapter.
        matrices: names of its saved matrices. Where the config chooses layers by a pattern or by number they say which;
            without them the pattern itself becomes the target.

    Raises:
        UserError: if the file is missing, or the adapter is of a kind that `LoraConv1D` does not compute.
    """
    file = folder / ADAPTER_CONFIG
    config = read_json(file, f"{folder} holds no adapter")
    if config.get("peft_type") != "LORA":
        raise UserError(f"the adapter in {folder} is of peft_type {config.get('peft_type')}: give a LoRA adapter")
    if not config.keys() >= {"r", "lora_alpha", "target_modules"}:
        raise UserError(f"{file} lacks r, lora_alpha or target_modules: copy the adapter again")
    for name, value in config.items():
        if not _is_harmless(name, value):
            raise UserError(
                f"the adapter in {folder} has {name} {value!r}, which is not supported: give a plain LoRA adapter"
            )
    try:
        rank = int(config["r"])
        return LoraSettings(
            rank=rank,
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            targets=_targets(config, matrices),
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): copy the adapter again") from None


def _is_harmless(name: str, value: Any) -> bool:
    checks: dict[str, bool] = {
        "bias": value == "none",
        "init_lora_weights": value in INITIALISATIONS,
        "rank_pattern": not value,
        "alpha_pattern": not value,
        "revision": value in (None, "main"),  # of the base model
    }
    return checks.get(name, name in ANY_VALUE or not value)


def _targets(config: dict[str, Any], matrices: Collection[str]) -> tuple[str, ...]:
    """Return the names of the adapted layers; full paths where PEFT chose them in a way that ours has no name for."""
    targets = config["target_modules"]
    by_name = not isinstance(targets, str)
    chosen = any(config.get(name) is not None for name in ("exclude_modules", "layers_to_transform"))
    if by_name and not chosen:
        return tuple(sorted(targets))
    paths = {name.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for name in matrices if ".lora_" in name}
    return tuple(sorted(paths)) or ((targets,) if isinstance(targets, str) else tuple(sorted(targets)))
