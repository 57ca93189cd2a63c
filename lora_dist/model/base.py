"""The base model: GPT-2 and its tokenizer with the reference token."""

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AddedToken, AutoConfig, AutoTokenizer, GPT2LMHeadModel
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from lora_dist.config import ModelSettings
from lora_dist.data.tokens import REFERENCE_TOKEN
from lora_dist.errors import UserError
from lora_dist.model.gpt2 import fuse_activation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PUBLISHED: dict[str, dict[str, int]] = {"gpt2": {}, "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
"""Shapes of the published models by hub id, where they differ from GPT2Config's defaults."""


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load the model's tokenizer, and add the reference token if it is missing.

    The token absorbs the space before it (`lstrip`), so that `MR <|ref|> REFERENCE` has no separate space tokens.

    Raises:
        UserError: if there is no tokenizer under that name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.name)
    except (OSError, ValueError) as error:
        raise _not_loadable(settings.name, error) from None
    if not tokenizer("name", add_special_tokens=False).input_ids:  # transformers returns an empty one
        raise _not_loadable(settings.name, ValueError("it has no tokenizer"))
    tokenizer.add_tokens([AddedToken(REFERENCE_TOKEN, lstrip=True, normalized=False)], special_tokens=True)
    return tokenizer


def load_config(settings: ModelSettings) -> Any:
    """Load the model's config, without its weights, and set the dropout of the settings.

    Raises:
        UserError: if there is no model under that name, or it is not a plain GPT-2.
    """
    try:
        config = AutoConfig.from_pretrained(settings.name)
    except (OSError, ValueError) as error:
        raise _not_loadable(settings.name, error) from None
    _require_plain_gpt2(settings.name, config)
    if settings.dropout is not None:
        config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = settings.dropout
    return config


def _require_plain_gpt2(name: str, config: Any) -> None:
    """Refuse a model that computes anything but a GPT-2 language model.

    Raises:
        UserError: which names the difference.
    """
    if config.model_type != "gpt2":
        raise UserError(f"{_named(name)} is a {config.model_type} model: give a GPT-2")
    scaled = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or not config.scale_attn_weights
    differences = {
        "scales attention differently": scaled,
        "has cross-attention": config.add_cross_attention,
        "is quantised": getattr(config, "quantization_config", None) is not None,
        "has code of its own": getattr(config, "auto_map", None) is not None,
        "has pruned heads": bool(getattr(config, "pruned_heads", None)),
        "has an output projection of its own": not config.tie_word_embeddings,
        "holds a PEFT adapter next to the model": find_adapter_config_file(name) is not None,
    }
    if found := [difference for difference, holds in differences.items() if holds]:
        raise UserError(f"{_named(name)} {found[0]}: give a plain GPT-2 (lora-dist merge writes one)")


def load_base(settings: ModelSettings, tokenizer: Any, dtype: torch.dtype) -> GPT2LMHeadModel:
    """Load the frozen GPT-2 on the CPU in `dtype`, with an embedding for the reference token.

    A new embedding is the mean of all others: the same on every rank and in every run.

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
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loadable(settings.name, error) from None
    _require_gpt2_weights(settings.name, model, info)
    fuse_activation(model.transformer)
    vocabulary = model.transformer.wte.weight.shape[0]
    reference_id = reference_row(settings.name, tokenizer, vocabulary)
    if reference_id == vocabulary:
        mean = model.transformer.wte.weight.detach().float().mean(0)
        model.resize_token_embeddings(reference_id + 1, mean_resizing=False)
        set_reference_row(model, tokenizer, mean)
    return model


def _require_gpt2_weights(name: str, model: GPT2LMHeadModel, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights of GPT-2 or has others.

    Raises:
        UserError: which names one of them.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{_named(name)} lacks {len(missing)} of GPT-2's weights, such as {missing[0]}: download it again"
        )
    # Older versions of transformers saved the causal mask, a constant.
    other = [key for key in sorted(info["unexpected_keys"]) if not key.endswith((".attn.bias", ".attn.masked_bias"))]
    if model.lm_head.weight is not model.transformer.wte.weight:  # both are in the file, and differ
        other = ["lm_head.weight"]
    if other:
        raise UserError(f"{_named(name)} has weights that are not GPT-2's, such as {other[0]}: give a plain GPT-2")


def reference_row(name: str, tokenizer: Any, vocabulary: int) -> int:
    """Return the embedding row of the reference token, which is `vocabulary` if it has yet to be added.

    Args:
        name: the model's name, for the message.
        tokenizer: from `load_tokenizer`.
        vocabulary: rows of the model's embedding.

    Raises:
        UserError: if the tokenizer has more tokens than the model.
    """
    row: int = tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)
    if row > vocabulary:
        raise UserError(
            f"{_named(name)} has a tokenizer of {row} tokens for a model of {vocabulary}: "
            "save the model's own tokenizer next to it"
        )
    return row


def set_reference_row(model: GPT2LMHeadModel, tokenizer: Any, row: Tensor) -> None:
    """Set the reference token's embedding to `row` (width,), which also sets the tied output projection."""
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)] = row


def base_fingerprint(model: GPT2LMHeadModel, tokenizer: Any) -> str:
    """Compute a SHA-256 over names, shapes and some values of each frozen tensor, the same in every precision.

    At least 256 values of each, evenly spaced, are fast to read and enough to tell two checkpoints apart. The reference
    token's row is left out, as the checkpoint may or may not have one.
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
    """What an adapter records about its base model."""

    name: str
    """Hub id or path."""
    fingerprint: str
    """See `base_fingerprint`."""
    reference_row: Tensor
    """Embedding of the reference token, fp32 on the CPU: (width,)."""


def identify(model: GPT2LMHeadModel, tokenizer: Any, name: str) -> BaseIdentity:
    """Return the identity of a loaded model; call it before ZeRO partitions the weights."""
    row = model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)]
    return BaseIdentity(name, base_fingerprint(model, tokenizer), row.detach().float().cpu().clone())


def _named(name: str) -> str:
    """Return how a message calls the model: also the folder, if a name like a hub id's is that of one."""
    folder = os.path.abspath(name)
    return f"--model.name {name}" + (f", the folder {folder}," if os.path.isdir(name) and folder != name else "")


def _not_loadable(name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not os.path.exists(name) and (name.count("/") > 1 or name.startswith(("/", ".", "~"))):  # no hub id
        reason = "there is no such folder"
    return UserError(
        f"{_named(name)} cannot be loaded ({reason}): give the folder of a GPT-2 checkpoint, or a hub id such as "
        "gpt2 on a machine that reaches the hub or has it in its cache"
    )
