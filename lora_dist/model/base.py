"""GPT-2 and its tokenizer with the reference token, LoRA injected; adapters read from and written to folders."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from transformers import AddedToken, AutoConfig, AutoTokenizer, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from lora_dist.config import LoraSettings, ModelSettings, UserError
from lora_dist.data.collate import REFERENCE_TOKEN
from lora_dist.files import read_json
from lora_dist.model import lora
from lora_dist.model.gpt2 import fuse_activation
from lora_dist.run_dir import ADAPTER_WEIGHTS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PUBLISHED: dict[str, dict[str, int]] = {"gpt2": {}, "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
"""Shapes of the published models by hub id, as far as they differ from GPT2Config's defaults."""

ADAPTER_CONFIG = "adapter_config.json"
REFERENCE_ROW = "reference_token.safetensors"


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's tokenizer, with the reference token added if it has none.

    The token swallows the space before it (`lstrip`), so that text written with single spaces around it puts no lone
    space token on either side.

    Raises:
        UserError: if there is no tokenizer under that name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.name)
    except (OSError, ValueError) as error:
        raise _not_loadable(settings.name, error) from None
    if not tokenizer("name", add_special_tokens=False).input_ids:  # transformers makes up an empty one
        raise _not_loadable(settings.name, ValueError("it has no tokenizer"))
    tokenizer.add_tokens([AddedToken(REFERENCE_TOKEN, lstrip=True, normalized=False)], special_tokens=True)
    return tokenizer


def load_config(settings: ModelSettings) -> Any:
    """The shape of the model, which needs no weights, with the dropout asked for.

    Raises:
        UserError: if there is no model under that name, or it is not a plain GPT-2.
    """
    try:
        config = AutoConfig.from_pretrained(settings.name)
    except (OSError, ValueError) as error:
        raise _not_loadable(settings.name, error) from None
    if config.model_type != "gpt2":
        raise UserError(f"--model.name {settings.name} is a {config.model_type} model: give a GPT-2")
    if config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or not config.scale_attn_weights:
        raise UserError(f"--model.name {settings.name} scales attention in its own way: give a plain GPT-2")
    if settings.dropout is not None:
        config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = settings.dropout
    return config


def load_base(settings: ModelSettings, tokenizer: Any, dtype: torch.dtype) -> GPT2LMHeadModel:
    """The frozen GPT-2 on the CPU, in `dtype`, with an embedding row for the reference token.

    The new row is the mean of all others: every rank and every run computes the same.

    Raises:
        UserError: if the model cannot be loaded, is not a GPT-2, or lacks weights.
    """
    transformers_logging.disable_progress_bar()
    config = load_config(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = GPT2LMHeadModel.from_pretrained(
                settings.name, config=config, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loadable(settings.name, error) from None
    if info["missing_keys"]:
        raise UserError(
            f"--model.name {settings.name} lacks {len(info['missing_keys'])} of GPT-2's weights, such as "
            f"{sorted(info['missing_keys'])[0]}: download it again"
        )
    fuse_activation(model.transformer)
    vocabulary = model.transformer.wte.weight.shape[0]
    reference_id = reference_row(settings.name, tokenizer, vocabulary)
    if reference_id == vocabulary:
        mean = model.transformer.wte.weight.detach().float().mean(0)
        model.resize_token_embeddings(reference_id + 1, mean_resizing=False)
        set_reference_row(model, tokenizer, mean)
    return model


def reference_row(name: str, tokenizer: Any, vocabulary: int) -> int:
    """Which row of the embedding is the reference token's; `vocabulary`, the number of rows, if it has yet to be added.

    Raises:
        UserError: if the tokenizer has more words than the model.
    """
    row: int = tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)
    if row > vocabulary:
        raise UserError(
            f"--model.name {name} has a tokenizer of {row} words for a model of {vocabulary}: "
            "save the model's own tokenizer beside it"
        )
    return row


def set_reference_row(model: GPT2LMHeadModel, tokenizer: Any, row: Tensor) -> None:
    """Make `row` (width,) the embedding of the reference token, on the input and the tied output side."""
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)] = row


def inject(model: GPT2LMHeadModel, settings: LoraSettings, seed: int) -> None:
    """Add the trained matrices and check that they, and nothing else, are trained.

    Raises:
        UserError: if a target matches no layer.
    """
    lora.inject(model, settings, seed)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == len(lora.parameters(model)), "something besides the adapter is trained"
    assert trainable_count(model) == lora.expected_count(model, settings.rank), "the count differs from the formula"


def trainable_count(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in lora.parameters(model).values())


def base_fingerprint(model: GPT2LMHeadModel, tokenizer: Any) -> str:
    """SHA-256 over names, shapes and 256 values of each frozen tensor of the checkpoint, the same in any precision.

    A sample, since it only has to tell two checkpoints apart, and in an instant. The reference token's row is left
    out: whether the checkpoint had one does not matter.
    """
    digest = hashlib.sha256()
    vocabulary = tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        tensor = parameter.detach()[:vocabulary] if name.endswith("wte.weight") else parameter.detach()
        values = tensor.reshape(-1)
        sample = values[:: max(1, values.numel() // 256)].to("cpu", torch.bfloat16)
        digest.update(f"{name.replace('.base.', '.')} {tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class BaseIdentity:
    """What an adapter says of the model it was trained on."""

    name: str
    """Hub id or path."""
    fingerprint: str
    """See `base_fingerprint`."""
    reference_row: Tensor
    """Embedding of the reference token, fp32 on the CPU: (width,)."""


def identify(model: GPT2LMHeadModel, tokenizer: Any, name: str) -> BaseIdentity:
    """The identity of a loaded model; to be taken before ZeRO divides its weights up."""
    row = model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)]
    return BaseIdentity(name, base_fingerprint(model, tokenizer), row.detach().float().cpu().clone())


def save_adapter(folder: Path, state: Mapping[str, Tensor], settings: LoraSettings, base: BaseIdentity) -> None:
    """Write an adapter in PEFT's layout into an existing folder, and the reference token's row beside it.

    Args:
        folder: where the files go.
        state: A (r, in) and B (out, r) by PEFT's name, fp32 on the CPU.
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
    # By way of bytes: a full disk then is an OSError, which safetensors' own writer hides in an error of its own.
    (folder / ADAPTER_WEIGHTS).write_bytes(tensors_to_bytes({key: value.contiguous() for key, value in state.items()}))
    metadata = {"base_fingerprint": base.fingerprint}
    (folder / REFERENCE_ROW).write_bytes(tensors_to_bytes({REFERENCE_TOKEN: base.reference_row}, metadata=metadata))


def load_adapter(folder: Path, model: GPT2LMHeadModel, tokenizer: Any) -> None:
    """Inject the adapter of `folder` into a plain `model`, strictly.

    An adapter trained with PEFT has no stored row for the reference token: the model's own stays.

    Raises:
        UserError: if the folder holds no adapter, or one that was made for another model.
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
    """Shape of the adapter in `folder`, from its adapter_config.json.

    Raises:
        UserError: if there is none, or it is of a kind that our layer does not compute.
    """
    config = read_json(folder / ADAPTER_CONFIG, f"{folder} holds no adapter")
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise UserError(f"the adapter in {folder} is not a plain LoRA: train one with lora-dist or PEFT's LoraConfig")
    if config.get("bias", "none") != "none" or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"the adapter in {folder} trains biases or mixes ranks, which lora-dist does not do")
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
    """A and B by PEFT's name.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        state: dict[str, Tensor] = load_file(folder / ADAPTER_WEIGHTS)
        return state
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / ADAPTER_WEIGHTS} cannot be read ({error}): train again or --resume") from None


def _not_loadable(name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"--model.name {name} cannot be loaded ({reason}): give the folder of a GPT-2 checkpoint, or a hub id such as "
        "gpt2 on a machine that reaches the hub or has it in its cache"
    )
