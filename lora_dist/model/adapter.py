"""Adapters on disk: folders in PEFT's layout, read, written, and merged into a base model."""

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
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
from lora_dist.files import new_folder, require_readable
from lora_dist.model import lora
from lora_dist.model.adapter_config import ADAPTER_CONFIG, read_adapter_settings
from lora_dist.model.base import BaseIdentity, base_fingerprint, load_base, load_tokenizer, set_reference_row
from lora_dist.model.blocks import join_blocks
from lora_dist.model.lora import PEFT_PREFIX
from lora_dist.run_dir import ADAPTER_WEIGHTS
from lora_dist.run_guard import require_writable

REFERENCE_ROW = "reference_token.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, REFERENCE_ROW)
"""What an adapter consists of; its folder may hold more, such as a model card or a Trainer's optimizer."""


def save_adapter(folder: Path, state: Mapping[str, Tensor], settings: LoraSettings, base: BaseIdentity) -> None:
    """Write an adapter in PEFT's layout, and the reference token's embedding next to it.

    Args:
        folder: an existing folder.
        state: the trainable tensors by PEFT's names, see `lora.parameters`, fp32 on the CPU.
        settings: the adapter's shape.
        base: the model it was trained on.
    """
    pairs = max(1, len(settings.parts))  # saved as one of their total rank, with the same scaling
    state = {
        name: join_blocks(tensor, settings.parts) if name.endswith("lora_B.weight") else tensor
        for name, tensor in state.items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": settings.rank * pairs,
        "lora_alpha": settings.alpha * (math.sqrt(pairs) if settings.rslora else pairs),
        "lora_dropout": settings.dropout,
        "target_modules": ["c_attn"] if settings.parts else list(settings.targets),
        "fan_in_fan_out": True,
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Serialised first: a full disk then raises OSError, which safetensors' own writer wraps in another error.
    (folder / ADAPTER_WEIGHTS).write_bytes(tensors_to_bytes({key: value.contiguous() for key, value in state.items()}))
    metadata = {"base_fingerprint": base.fingerprint}
    (folder / REFERENCE_ROW).write_bytes(tensors_to_bytes({REFERENCE_TOKEN: base.reference_row}, metadata=metadata))


def load_adapter(folder: Path, model: GPT2LMHeadModel, tokenizer: Any) -> None:
    """Inject the adapter of `folder` into a plain `model`; every matrix has to fit.

    The reference token's embedding is the one stored next to the adapter. PEFT stores it, if at all, in a whole
    embedding matrix, whose other rows then must be the model's; otherwise the model's own is kept.

    Raises:
        UserError: if the folder holds no adapter, or one that was trained on another model.
    """
    state = load_adapter_state(folder)
    matrices = {name: tensor for name, tensor in state.items() if ".lora_" in name}
    settings = read_adapter_settings(folder, matrices)
    lora.inject(model, settings, seed=0, source=f"the adapter in {folder} has target_modules, of which")
    lora.load(model, matrices)
    row = _row_of_resized_embedding(folder, state, model, tokenizer)
    row_file = folder / REFERENCE_ROW
    if row_file.is_file():
        require_readable(row_file)
        try:
            with safe_open(row_file, framework="pt") as file:
                trained_on, row = file.metadata()["base_fingerprint"], file.get_tensor(REFERENCE_TOKEN)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{row_file} cannot be read ({error}): train again or --resume") from None
        if trained_on != base_fingerprint(model, tokenizer):
            raise UserError(f"the adapter in {folder} was trained on another base model: check --model.name")
    if row is not None:
        set_reference_row(model, tokenizer, row)


def _row_of_resized_embedding(
    folder: Path, state: Mapping[str, Tensor], model: GPT2LMHeadModel, tokenizer: Any
) -> Tensor | None:
    """Return the reference token's row (width,) of an embedding that PEFT saved with the adapter; None without one.

    Raises:
        UserError: if the embedding differs from the model's in another row, or other tensors were saved.
    """
    row = None
    reference = tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)
    own = model.transformer.wte.weight.detach()
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        if name.removeprefix(PEFT_PREFIX) not in ("transformer.wte.weight", "lm_head.weight"):
            raise UserError(f"the adapter in {folder} has also trained {name}: give one with LoRA matrices only")
        same = tensor.shape == own.shape and torch.equal(tensor[:reference], own[:reference].to(tensor.dtype))
        if not same or (row is not None and not torch.equal(row, tensor[reference])):
            raise UserError(
                f"the adapter in {folder} has embeddings {name} {tuple(tensor.shape)} that are not the base model's "
                f"with a row for {REFERENCE_TOKEN}: save it with save_embedding_layers=False, or check --model.name"
            )
        row = tensor[reference]
    return row


def load_adapter_state(folder: Path, remedy: str = "train again or --resume") -> dict[str, Tensor]:
    """Load the tensors of an adapter by PEFT's names: A (r, in) and B (out, r), perhaps embeddings.

    Args:
        folder: of the adapter.
        remedy: the end of the error message.

    Raises:
        UserError: if the file is missing or damaged.
    """
    file = folder / ADAPTER_WEIGHTS
    if not (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"{folder} holds no adapter: it has no {ADAPTER_CONFIG}")
    if not file.exists() and file.with_name("adapter_model.bin").exists():
        raise UserError(f"{folder} has an adapter_model.bin: save it again with safe_serialization=True")
    require_readable(file)
    try:
        state: dict[str, Tensor] = load_file(file)
        return state
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): {remedy}") from None


def load_adapted(settings: ModelSettings, adapter: Path) -> tuple[GPT2LMHeadModel, Any]:
    """Load GPT-2 with the adapter injected, in fp32 on the CPU, and its tokenizer.

    Raises:
        UserError: if there is no adapter, or it was trained on another base model.
    """
    if not adapter.is_dir():
        raise UserError(f"{adapter} is missing: train first, or resume with train --resume")
    tokenizer = load_tokenizer(settings)
    model = load_base(settings, tokenizer, torch.float32)
    load_adapter(adapter, model, tokenizer)
    return model, tokenizer


def load_merged(settings: ModelSettings, adapter: Path) -> tuple[GPT2LMHeadModel, Any]:
    """Load a plain GPT-2 with the adapter merged into its weights, in fp32 on the CPU, and its tokenizer.

    Raises:
        UserError: if there is no adapter, or it was trained on another base model.
    """
    model, tokenizer = load_adapted(settings, adapter)
    lora.fold(model)
    return model, tokenizer


def save_merged(settings: ModelSettings, adapter: Path, out: Path) -> None:
    """Write a plain GPT-2 checkpoint with the adapter merged, and its tokenizer, to a new folder.

    The config keeps the base model's own dropout, whatever the training used.

    Raises:
        UserError: if `out` is not empty or cannot be written, there is no adapter, or it does not fit the model.
        OSError: if the disk is full.
    """
    _require_empty(out)
    require_writable(out)
    model, tokenizer = load_merged(replace(settings, dropout=None), adapter)
    with new_folder(out.resolve()) as folder:  # the target of a link, not the link
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # safetensors' own writer hides a full disk in an error of its own
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
            raise
        tokenizer.save_pretrained(folder)
        _require_empty(out)  # another merge may have been faster


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: name a new folder")
