"""Adapters on disk: folders in PEFT's layout, read, written, and merged into a base model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings, ModelSettings
from lora_dist.data.tokens import REFERENCE_TOKEN
from lora_dist.errors import UserError
from lora_dist.files import read_json
from lora_dist.model import lora
from lora_dist.model.base import BaseIdentity, base_fingerprint, load_base, load_tokenizer, set_reference_row
from lora_dist.run_dir import ADAPTER_WEIGHTS

ADAPTER_CONFIG = "adapter_config.json"
REFERENCE_ROW = "reference_token.safetensors"


def save_adapter(folder: Path, state: Mapping[str, Tensor], settings: LoraSettings, base: BaseIdentity) -> None:
    """Write an adapter in PEFT's layout, and the reference token's embedding next to it.

    Args:
        folder: an existing folder.
        state: A (r, in) and B (out, r) by PEFT's names, fp32 on the CPU.
        settings: the adapter's shape.
        base: the model it was trained on.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": list(settings.targets),
        "fan_in_fan_out": True,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Serialised first: a full disk then raises OSError, which safetensors' own writer wraps in another error.
    (folder / ADAPTER_WEIGHTS).write_bytes(tensors_to_bytes({key: value.contiguous() for key, value in state.items()}))
    metadata = {"base_fingerprint": base.fingerprint}
    (folder / REFERENCE_ROW).write_bytes(tensors_to_bytes({REFERENCE_TOKEN: base.reference_row}, metadata=metadata))


def load_adapter(folder: Path, model: GPT2LMHeadModel, tokenizer: Any) -> None:
    """Inject the adapter of `folder` into a plain `model`; every matrix has to fit.

    An adapter trained with PEFT comes without a reference-token embedding: the model's own is kept.

    Raises:
        UserError: if the folder holds no adapter, or one that was trained on another model.
    """
    settings = read_adapter_settings(folder)
    lora.inject(model, settings, seed=0)
    lora.load(model, load_adapter_state(folder))
    row_file = folder / REFERENCE_ROW
    if not row_file.is_file():
        return
    try:
        with safe_open(row_file, framework="pt") as file:
            trained_on, row = file.metadata()["base_fingerprint"], file.get_tensor(REFERENCE_TOKEN)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{row_file} cannot be read ({error}): train again or --resume") from None
    if trained_on != base_fingerprint(model, tokenizer):
        raise UserError(f"the adapter in {folder} was trained on another base model: check --model.name")
    set_reference_row(model, tokenizer, row)


def read_adapter_settings(folder: Path) -> LoraSettings:
    """Read the shape of the adapter in `folder` from its adapter_config.json.

    Raises:
        UserError: if the file is missing, or the adapter is of a kind that `LoraConv1D` does not compute.
    """
    config = read_json(folder / ADAPTER_CONFIG, f"{folder} holds no adapter")
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise UserError(f"the adapter in {folder} is not a plain LoRA: train one with lora-dist or PEFT's LoraConfig")
    if config.get("bias", "none") != "none" or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"the adapter in {folder} trains biases or mixes ranks, which lora-dist does not support")
    if not config.keys() >= {"r", "lora_alpha", "target_modules"}:
        raise UserError(f"{folder / ADAPTER_CONFIG} lacks r, lora_alpha or target_modules: copy the adapter again")
    targets = config["target_modules"]
    return LoraSettings(
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config.get("lora_dropout", 0.0),
        targets=tuple(sorted([targets] if isinstance(targets, str) else targets)),
    )


def load_adapter_state(folder: Path) -> dict[str, Tensor]:
    """Load A (r, in) and B (out, r) by PEFT's names.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        state: dict[str, Tensor] = load_file(folder / ADAPTER_WEIGHTS)
        return state
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / ADAPTER_WEIGHTS} cannot be read ({error}): train again or --resume") from None


def load_merged(settings: ModelSettings, adapter: Path) -> tuple[GPT2LMHeadModel, Any, str]:
    """Load GPT-2 with the adapter merged into its weights, in fp32 on the CPU.

    Returns:
        The model without adapter layers, its tokenizer, and the base model's fingerprint.

    Raises:
        UserError: if there is no adapter, or it was trained on another base model.
    """
    if not adapter.is_dir():
        raise UserError(f"{adapter} is missing: train first, or resume with train --resume")
    tokenizer = load_tokenizer(settings)
    model = load_base(settings, tokenizer, torch.float32)
    fingerprint = base_fingerprint(model, tokenizer)
    load_adapter(adapter, model, tokenizer)
    lora.fold(model)
    return model, tokenizer, fingerprint
