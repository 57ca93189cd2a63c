"""Beam search on one device for a batch of prompts.

The algorithm is that of transformers' `generate`: of the 2 K best candidates per step, the first K may finish a
sentence, and the best K that do not end are continued. Both are tensor operations over all prompts at once; the host
reads one flag per prompt and step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_dist.config import DecodeSettings
from lora_dist.decoding.kv_cache import DecodingModel, KVCache
from lora_dist.errors import UserError
from lora_dist.model.kernels.select import Kernels

LEAVE_AT = 1 / 8
"""Fraction of finished prompts at which they leave the batch, which copies the cache of the others."""


@dataclass(frozen=True)
class Sentence:
    """A hypothesis of the beam search."""

    tokens: list[int]
    """Generated token ids, without end-of-text."""
    score: float
    """Sum of log-probabilities in nats / length ** length_penalty, both including end-of-text if it was generated."""


@dataclass
class _Beams:
    """The hypotheses of all prompts in the batch; K is the number of beams, T the length of the longest sentence."""

    rows: Tensor
    """Index of each prompt among all prompts: (prompts,)."""
    running: Tensor
    """Sums of log-probabilities of the running hypotheses, best first: (prompts, K)."""
    tokens: Tensor
    """Their tokens: (prompts, K, T)."""
    finished: Tensor
    """Scores of the finished hypotheses, best first, -inf for one still missing: (prompts, K)."""
    sentences: Tensor
    """Their tokens, end-of-text after the last: (prompts, K, T)."""
    done: Tensor
    """Whether a prompt's search has ended: (prompts,)."""

    def take(self, rows: Tensor) -> "_Beams":
        """Return only the prompts `rows` (n,)."""
        return _Beams(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def beam_search(
    model: DecodingModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings, eos_id: int
) -> list[list[Sentence]]:
    """Search the best sentences of each prompt: one to `num_beams` finished hypotheses, best first.

    The other prompts of the batch change the result by rounding at most.

    Args:
        model: from `kv_cache.lay_out`.
        prompts: token ids of each prompt, at least one.
        settings: beams, penalties and limits.
        eos_id: id of the end-of-text token.

    Raises:
        UserError: if a sentence might exceed the model's positions.
    """
    check_room(model.positions, max(map(len, prompts)), settings)
    with torch.inference_mode():
        return _search(model, prompts, settings, eos_id)


def check_room(positions: int, longest: int, settings: DecodeSettings) -> None:
    """Refuse sentences that might exceed the model's `positions` after a prompt of `longest` tokens.

    Raises:
        UserError: if they might.
    """
    if longest + settings.max_new_tokens > positions:
        raise UserError(
            f"--decode.max-new-tokens is {settings.max_new_tokens}: after a prompt of {longest} tokens the model's "
            f"{positions} positions leave room for {max(0, positions - longest)}"
        )


def _search(
    model: DecodingModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings, eos_id: int
) -> list[list[Sentence]]:
    found: list[list[Sentence]] = [[] for _ in prompts]
    cache = KVCache(model, prompts, settings.num_beams, settings.max_new_tokens)
    before = _history(prompts, settings, model.device)
    beams = _start(len(prompts), settings, eos_id, model.device)
    # The first step has one hypothesis per prompt, the empty one.
    logits, running = cache.logits[:, None], beams.running[:, :1]
    for length in range(1, settings.max_new_tokens + 1):
        generated = beams.tokens[:, : logits.shape[1], : length - 1]
        history = torch.cat([before[:, None].expand(-1, generated.shape[1], -1), generated], -1)
        banned = _repetitions(history, settings.no_repeat_ngram_size)
        scores, parents, tokens = _candidates(model.kernels, logits, running, banned, 2 * settings.num_beams)
        parents, tokens = _advance(beams, scores, parents, tokens, length, settings, eos_id)
        done = beams.done.tolist()  # once per step the host waits for the device
        if all(done) or length == settings.max_new_tokens:
            break
        if sum(done) >= LEAVE_AT * len(done):
            _collect(found, beams.take(beams.done), eos_id)
            left = (~beams.done).nonzero()[:, 0]
            beams, parents, tokens, before = beams.take(left), parents[left], tokens[left], before[left]
            cache.keep(left)
        running, logits = beams.running, cache.step(tokens, parents)
    _collect(found, beams, eos_id)
    return found


def _start(prompts: int, settings: DecodeSettings, eos_id: int, device: torch.device) -> _Beams:
    beams, longest = settings.num_beams, settings.max_new_tokens
    return _Beams(
        rows=torch.arange(prompts, device=device),
        running=torch.zeros(prompts, beams, device=device),
        tokens=torch.full((prompts, beams, longest), eos_id, device=device),
        finished=torch.full((prompts, beams), -torch.inf, device=device),
        sentences=torch.full((prompts, beams, longest), eos_id, device=device),
        done=torch.zeros(prompts, dtype=torch.bool, device=device),
    )


def _history(prompts: Sequence[Sequence[int]], settings: DecodeSettings, device: torch.device) -> Tensor:
    """Return the tokens before the sentence that belong to its n-gram scope, left-padded with -1: (prompts, n)."""
    texts = prompts if settings.ngram_scope == "all" else [[] for _ in prompts]
    width = max(map(len, texts))
    return torch.tensor([[-1] * (width - len(p)) + list(p) for p in texts], dtype=torch.long, device=device)


def _repetitions(history: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Find the tokens that would complete an n-gram of the history a second time.

    Args:
        history: tokens in the scope of n-grams so far, left-padded with -1: (prompts, K, t).
        size: n of the n-grams; 0 bans nothing.

    Returns:
        Tokens of the history, and whether each of them is banned: both (prompts, K, m).
    """
    if size == 0 or history.shape[-1] < size:
        return history[..., :0], history[..., :0] == 0
    ngrams = history.unfold(-1, size, 1)  # (prompts, K, places, size)
    starts, last = ngrams[..., :-1], ngrams[..., -1]
    repeated = (starts == history[..., None, history.shape[-1] - size + 1 :]).all(-1) & (last >= 0)
    return last.clamp(min=0), repeated


def _candidates(
    kernels: Kernels, logits: Tensor, running: Tensor, banned: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the `k` best continuations of all hypotheses of each prompt.

    Args:
        kernels: kernels of the device.
        logits: logits of the next token: (prompts, K, vocabulary).
        running: sums of log-probabilities so far: (prompts, K).
        banned: see `_repetitions`.
        k: continuations to find.

    Returns:
        Sums of log-probabilities, parents (hypotheses) and tokens, best first: each (prompts, k).
    """
    each = min(k, logits.shape[-1])
    repeated, ban = (part.flatten(0, 1) for part in banned)
    best, tokens = kernels.top_tokens(logits.flatten(0, 1), repeated, ban, each)
    scores = (running[..., None] + best.view(*running.shape, each)).flatten(1)
    scores, places = F.pad(scores, (0, max(0, k - scores.shape[1])), value=-torch.inf).topk(k, -1)
    places = places.clamp(max=running.shape[1] * each - 1)  # padding, if the vocabulary is tiny
    return scores, places // each, tokens.view(len(running), -1).gather(1, places)


def _advance(
    beams: _Beams, scores: Tensor, parents: Tensor, tokens: Tensor, length: int, settings: DecodeSettings, eos_id: int
) -> tuple[Tensor, Tensor]:
    """Finish and extend hypotheses, in place.

    Args:
        beams: the hypotheses of `length` - 1 tokens.
        scores: sums of log-probabilities of 2 K candidates, best first: (prompts, 2 K).
        parents: the hypothesis that each candidate extends: (prompts, 2 K).
        tokens: the token that each candidate adds: (prompts, 2 K).
        length: tokens of the candidates, including end-of-text.
        settings: see `beam_search`.
        eos_id: id of the end-of-text token.

    Returns:
        Parents and tokens of the hypotheses that are continued: both (prompts, K).
    """
    width, penalty = settings.num_beams, settings.length_penalty
    texts = _pick(beams.tokens, parents)
    texts[..., length - 1] = tokens
    ended = tokens == eos_id
    finishing = (ended | (length == settings.max_new_tokens))[:, :width] & ~beams.done[:, None]
    finished = torch.where(finishing, scores[:, :width] / length**penalty, -torch.inf)
    beams.finished, order = torch.cat([beams.finished, finished], 1).topk(width, 1)
    beams.sentences = _pick(torch.cat([beams.sentences, texts[:, :width]], 1), order)
    beams.running, order = scores.masked_fill(ended, -torch.inf).topk(width, 1)
    beams.tokens = _pick(texts, order)
    full = beams.finished[:, -1].isfinite()
    if settings.early_stopping == "true":
        beams.done = full
    else:
        # The sum can only fall, but divided by a greater length to a positive power it may still rise.
        longest = settings.early_stopping == "never" and penalty > 0
        bound = beams.running[:, 0] / (settings.max_new_tokens if longest else length) ** penalty
        beams.done = beams.done | (full & (bound <= beams.finished[:, -1]))
    return parents.gather(1, order), tokens.gather(1, order)


def _pick(texts: Tensor, order: Tensor) -> Tensor:
    """Gather the texts (prompts, n, T) at `order` (prompts, k): (prompts, k, T)."""
    return texts.gather(1, order[..., None].expand(-1, -1, texts.shape[-1]))


def _collect(found: list[list[Sentence]], beams: _Beams, eos_id: int) -> None:
    """Write the finished sentences of `beams` to the entries of their prompts in `found`."""
    for row, scores, texts in zip(beams.rows.tolist(), beams.finished.tolist(), beams.sentences.tolist(), strict=True):
        ends = [text.index(eos_id) if eos_id in text else len(text) for text in texts]
        found[row] = [
            Sentence(text[:end], score)
            for text, end, score in zip(texts, ends, scores, strict=True)
            if score > -torch.inf
        ]
