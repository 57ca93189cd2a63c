"""Tiny models for beam searches, in which no two hypotheses tie, and prompts for them."""

import random
from typing import Literal

import torch
from transformers import GPT2Config, GPT2LMHeadModel

EOS = 0
EarlyStopping = Literal["true", "false", "never"]
Scope = Literal["generated", "all"]
EARLY_STOPPING: tuple[EarlyStopping, ...] = ("true", "false", "never")


def random_gpt2(seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of nine tokens: sentences end, are cut off, and would repeat themselves; no two tie."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config_of(vocabulary=9, width=16, layers=2, initializer_range=0.5)).eval()


def config_of(vocabulary: int, width: int, layers: int, initializer_range: float = 0.02) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=64,
        n_embd=width,
        n_layer=layers,
        n_head=1,
        initializer_range=initializer_range,
        tie_word_embeddings=False,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )


def prompts(count: int, seed: int, vocabulary: int = 9) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, vocabulary) for _ in range(draw.randint(1, 12))] for _ in range(count)]
