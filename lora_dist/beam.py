"""Beam search for one device: prompts in, the best sentence of each out.

The search is transformers' `generate`. What it lacks is the n-gram ban over the generated tokens alone, added here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2LMHeadModel, LogitsProcessor, NoRepeatNGramLogitsProcessor

from lora_dist.config import DecodeSettings

EARLY_STOPPING = {"true": True, "false": False, "never": "never"}


@dataclass(frozen=True)
class Sentence:
    """The best hypothesis of a search."""

    tokens: list[int]
    """Generated token ids, without end-of-text."""
    score: float
    """Sum of log-probabilities in nats, end-of-text among them if it came, over length ** length_penalty."""


class GeneratedNoRepeatNGram(LogitsProcessor):  # type: ignore[misc]
    """Bans n-grams that stand in the generated tokens already; the prompt may be repeated freely."""

    def __init__(self, size: int, prompt_length: int) -> None:
        self._ban = NoRepeatNGramLogitsProcessor(size)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ban in scores (rows, vocabulary) what would repeat in input_ids (rows, prompt + generated)."""
        banned: Tensor = self._ban(input_ids[:, self._prompt_length :], scores)
        return banned


@torch.inference_mode()
def beam_search(
    model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings, eos_id: int
) -> list[Sentence]:
    """The best sentence for each prompt; which prompts share the batch does not matter, but for rounding.

    Args:
        model: a plain GPT-2 in evaluation mode.
        prompts: token ids, each at least one.
        settings: beams, penalties, the ban, the longest sentence.
        eos_id: the end-of-text token.
    """
    width = max(len(prompt) for prompt in prompts)
    # Padding on the left, so that all sentences begin in the same column; generate derives positions from the mask.
    padded = torch.tensor([[eos_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    everywhere = settings.ngram_scope == "all"
    config = GenerationConfig(
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=EARLY_STOPPING[settings.early_stopping] if settings.num_beams > 1 else False,
        no_repeat_ngram_size=settings.no_repeat_ngram_size if everywhere else 0,
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )
    ban = []
    if settings.no_repeat_ngram_size and not everywhere:
        ban = [GeneratedNoRepeatNGram(settings.no_repeat_ngram_size, width)]
    model.generation_config = config  # generate would fill what ours leaves open from the checkpoint's own
    sequences = model.generate(padded, attention_mask=mask, logits_processor=ban)
    generated = [_until(row, eos_id) for row in sequences[:, width:].tolist()]
    scores = _scores(model, prompts, generated, settings.length_penalty, eos_id)
    return [
        Sentence([token for token in row if token != eos_id], score)
        for row, score in zip(generated, scores, strict=True)
    ]


def _until(tokens: list[int], eos_id: int) -> list[int]:
    """The tokens up to and with the first end-of-text."""
    return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens


def _scores(
    model: GPT2LMHeadModel,
    prompts: Sequence[Sequence[int]],
    generated: Sequence[Sequence[int]],
    length_penalty: float,
    eos_id: int,
) -> list[float]:
    """Length-normalised log-probability of each sentence (Wu et al. 2016 in transformers' form: sum / length ** a).

    Computed by one more forward pass, as `generate` returns scores only along with those of every step and word.
    """
    rows = [[*prompt, *sentence] for prompt, sentence in zip(prompts, generated, strict=True)]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [eos_id] * (width - len(row)) for row in rows], device=model.device)
    hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state
    scores = []
    for k, (prompt, sentence) in enumerate(zip(prompts, generated, strict=True)):
        first = len(prompt) - 1
        logits = model.lm_head(hidden[k, first : first + len(sentence)]).float()
        words = torch.tensor(sentence, device=model.device)
        total = logits.log_softmax(-1).gather(-1, words[:, None]).sum()
        scores.append(total.item() / len(sentence) ** length_penalty)
    return scores
