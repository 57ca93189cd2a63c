"""The base model of most tests: a random GPT-2 of 50,000 parameters, with its tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lora_dist.config import ModelSettings
from lora_dist.model.base import load_base, load_tokenizer

TEXTS = [
    "name[The Eagle], eatType[coffee shop], food[French], near[Café Rouge] The Eagle is a French coffee shop.",
    "name[Blue Spice], customer rating[5 out of 5], priceRange[£20-25] Blue Spice is rated 5 out of 5.",
]


def write_tiny_gpt2(folder: Path) -> None:
    """Write a random GPT-2 without dropout, and its byte-level tokenizer without reference token.

    No weight is left at a value that would hide a mistake (bias 0, scale 1), and the tokens' probabilities differ
    enough for a beam search to have no ties.
    """
    tokenizer = _train_tokenizer()
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=eos,
        eos_token_id=eos,
        initializer_range=0.2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def save_with_reference_row(model: Path, folder: Path) -> Path:
    """Save a model with a row for the reference token, as PEFT needs it, into `folder`, and return that."""
    settings = ModelSettings(name=str(model))
    tokenizer = load_tokenizer(settings)
    load_base(settings, tokenizer, torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
