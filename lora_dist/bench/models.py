"""The models of the benchmarks, as folders that every program can load."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lora_dist.config import ModelSettings
from lora_dist.model.base import PUBLISHED, load_base, load_tokenizer

SHAPES = {"small": "gpt2", "medium": "gpt2-medium"}
"""The model whose published shape each name stands for."""


def save_model(model: ModelSettings, shape: str | None, folder: Path) -> GPT2LMHeadModel:
    """Write model and tokenizer, both with the reference token, to `folder` in fp32, and return the model.

    Args:
        model: model whose tokenizer and, without a shape, weights are used.
        shape: a key of `SHAPES` for random weights of that shape, or None.
        folder: output folder, created if it does not exist.
    """
    tokenizer = load_tokenizer(model)
    gpt2 = load_base(model, tokenizer, torch.float32) if shape is None else _random_gpt2(shape, len(tokenizer))
    gpt2.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return gpt2


def _random_gpt2(shape: str, vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **PUBLISHED[SHAPES[shape]]))
