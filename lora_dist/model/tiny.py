"""A tiny GPT-2 and its tokenizer, trained from scratch: the base model of `demo` and `verify`, which work offline."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 800
WIDTH = 128
PRETRAINING_STEPS = 150
PRETRAINING_BATCH = 32


def pretrain(texts: list[str], folder: Path, seed: int, steps: int = PRETRAINING_STEPS) -> None:
    """Train a byte-level BPE tokenizer and a tiny GPT-2 as a language model on `texts`, and save both to `folder`.

    Args:
        texts: one example each.
        folder: output folder, created if it does not exist.
        seed: seed of the initial weights and the order of the texts.
        steps: AdamW steps, each with `PRETRAINING_BATCH` texts.
    """
    tokenizer = _train_tokenizer(texts)
    torch.manual_seed(seed)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        bos_token_id=eos,
        eos_token_id=eos,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).train()
    encoded = [torch.tensor([eos, *ids, eos]) for ids in tokenizer(texts).input_ids]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in trange(steps, desc="pre-train", unit="step", disable=None):
        rows = [encoded[index] for index in torch.randint(len(encoded), (PRETRAINING_BATCH,)).tolist()]
        ids = pad_sequence(rows, batch_first=True, padding_value=eos)
        real = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        loss = model(input_ids=ids, labels=ids.masked_fill(~real, -100)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like GPT-2's, but with a vocabulary of `VOCABULARY` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
