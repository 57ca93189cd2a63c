"""Beam search for one device: prompts in, the best sentences of each out.

The search is that of transformers' `generate`: of the 2 K best candidates a step, the first K may finish a sentence,
and the best K that do not end go on. What ends and what goes on is found by tensor operations over all prompts at once;
the host looks at one flag a prompt and step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import DecodeSettings, UserError
from lora_dist.decoder import Decoder

LOGITS_AT_ONCE = 2**20
"""Logits that are normalised at a time on a CPU, so that they stay in its cache."""

LEAVE_AT = 1 / 8
"""Share of finished prompts at which they are taken out of the batch; each time the others' cache is copied."""


@dataclass(frozen=True)
class Sentence:
    """A hypothesis of a search."""

    tokens: list[int]
    """Generated token ids, without end-of-text."""
    score: float
    """Sum of log-probabilities in nats, end-of-text among them if it came, over length ** length_penalty."""


@dataclass
class _Beams:
    """The hypotheses of all prompts that are still searched; K beams, T the longest sentence."""

    rows: Tensor
    """Which prompts these are: (prompts,)."""
    running: Tensor
    """Sums of log-probabilities of the hypotheses that go on, best first: (prompts, K)."""
    tokens: Tensor
    """Their tokens: (prompts, K, T)."""
    finished: Tensor
    """Scores of the finished hypotheses, best first, -inf where there is none yet: (prompts, K)."""
    sentences: Tensor
    """Their tokens, end-of-text after the last: (prompts, K, T)."""
    done: Tensor
    """Whether a prompt's search has ended: (prompts,)."""

    def take(self, rows: Tensor) -> "_Beams":
        """The prompts `rows` (n,) alone."""
        return _Beams(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def beam_search(
    model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings, eos_id: int
) -> list[list[Sentence]]:
    """The finished sentences of each prompt, best first; at most `num_beams`, at least one.

    Which prompts share the batch does not matter, but for rounding.

    Args:
        model: a plain GPT-2 in evaluation mode.
        prompts: token ids, each at least one.
        settings: beams, penalties, the ban, the longest sentence.
        eos_id: the end-of-text token.

    Raises:
        UserError: if a sentence might outgrow the model's positions.
    """
    _check(model, prompts, settings)
    with torch.inference_mode():
        return _search(model, prompts, settings, eos_id)


def _check(model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings) -> None:
    positions = model.config.n_positions
    if (longest := max(map(len, prompts))) + settings.max_new_tokens > positions:
        raise UserError(
            f"--decode.max-new-tokens is {settings.max_new_tokens}: after a prompt of {longest} tokens the model's "
            f"{positions} positions leave room for {positions - longest}"
        )


def _search(
    model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings, eos_id: int
) -> list[list[Sentence]]:
    found: list[list[Sentence]] = [[] for _ in prompts]
    decoder = Decoder(model, prompts, settings.num_beams, settings.max_new_tokens)
    seen = _history(prompts, settings, model.device)
    beams = _start(len(prompts), settings, eos_id, model.device)
    # The first step has one hypothesis a prompt, the empty one.
    logits, running = decoder.logits[:, None], beams.running[:, :1]
    for length in range(1, settings.max_new_tokens + 1):
        totals = running - _normalisers(logits)
        _ban_repetitions(logits, seen, beams.tokens[:, : logits.shape[1], : length - 1], settings.no_repeat_ngram_size)
        scores, parents, words = _candidates(logits, totals, 2 * settings.num_beams)
        parents, words = _advance(beams, scores, parents, words, length, settings, eos_id)
        done = beams.done.tolist()  # the one time a step that the host waits for the device
        if all(done):
            break
        if sum(done) >= LEAVE_AT * len(done):
            _collect(found, beams.take(beams.done), eos_id)
            going_on = (~beams.done).nonzero()[:, 0]
            beams, parents, words, seen = beams.take(going_on), parents[going_on], words[going_on], seen[going_on]
            decoder.keep(going_on)
        running, logits = beams.running, decoder.step(words, parents)
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
    """What the ban counts before the sentence, padded on the left with -1, which is no word: (prompts, n)."""
    counted = prompts if settings.ngram_scope == "all" else [[] for _ in prompts]
    width = max(map(len, counted))
    return torch.tensor([[-1] * (width - len(p)) + list(p) for p in counted], dtype=torch.long, device=device)


def _ban_repetitions(logits: Tensor, seen: Tensor, tokens: Tensor, size: int) -> None:
    """Set to -inf what would say `size` tokens in a row a second time.

    Args:
        logits: changed in place: (prompts, K, vocabulary).
        seen: tokens that count as said before: (prompts, n).
        tokens: what each hypothesis has said so far: (prompts, K, t).
        size: n of the n-grams; 0 bans nothing.
    """
    said = torch.cat([seen[:, None].expand(-1, tokens.shape[1], -1), tokens], -1)
    if size == 0 or said.shape[-1] < size:
        return
    ngrams = said.unfold(-1, size, 1)  # (prompts, K, places, size)
    starts, last = ngrams[..., :-1], ngrams[..., -1]
    repeated = (starts == said[..., None, said.shape[-1] - size + 1 :]).all(-1) & (last >= 0)
    # A word may follow several places of which only some match, so the lowest of its values counts.
    values = torch.where(repeated, -torch.inf, torch.inf).to(logits.dtype)
    logits.scatter_reduce_(-1, last.clamp(min=0), values, "amin")


def _normalisers(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials, in fp32: (prompts, beams), from logits (prompts, beams, vocabulary)."""
    rows = logits.flatten(0, 1)
    at_once = max(1, LOGITS_AT_ONCE // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    return torch.cat([part.float().logsumexp(-1) for part in parts]).view(logits.shape[:2])


def _candidates(logits: Tensor, totals: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations over all hypotheses of a prompt: scores, parents and words, best first, (prompts, count).

    Args:
        logits: of the next word: (prompts, beams, vocabulary).
        totals: what a logit has to be added to, to give the log-probability of the hypothesis: (prompts, beams).
        count: continuations wanted.
    """
    best, words = logits.topk(each := min(count, logits.shape[-1]), -1)
    scores = (totals[..., None] + best.float()).flatten(1)
    scores, places = F.pad(scores, (0, max(0, count - scores.shape[1])), value=-torch.inf).topk(count, -1)
    places = places.clamp(max=words[0].numel() - 1)  # the padding of a tiny vocabulary
    return scores, places // each, words.flatten(1).gather(1, places)


def _advance(
    beams: _Beams, scores: Tensor, parents: Tensor, words: Tensor, length: int, settings: DecodeSettings, eos_id: int
) -> tuple[Tensor, Tensor]:
    """Finish and extend hypotheses, in place; the parents and words of those that go on: both (prompts, K).

    Args:
        beams: the hypotheses of `length` - 1 tokens.
        scores: sums of log-probabilities of 2 K candidates, best first: (prompts, 2 K).
        parents: the hypothesis each extends: (prompts, 2 K).
        words: the word each adds: (prompts, 2 K).
        length: tokens of the candidates, end-of-text among them.
        settings: see `beam_search`.
        eos_id: the end-of-text token.
    """
    width, penalty = settings.num_beams, settings.length_penalty
    texts = _pick(beams.tokens, parents)
    texts[..., length - 1] = words
    ended = words == eos_id
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
        # The sum only falls; divided by a longer length to a positive power it may still rise.
        longest = settings.early_stopping == "never" and penalty > 0
        hope = beams.running[:, 0] / (settings.max_new_tokens if longest else length) ** penalty
        beams.done = beams.done | (full & (hope <= beams.finished[:, -1]))
    return parents.gather(1, order), words.gather(1, order)


def _pick(texts: Tensor, order: Tensor) -> Tensor:
    """Of texts (prompts, n, T) those that `order` (prompts, k) names: (prompts, k, T)."""
    return texts.gather(1, order[..., None].expand(-1, -1, texts.shape[-1]))


def _collect(found: list[list[Sentence]], beams: _Beams, eos_id: int) -> None:
    """Write the finished sentences of `beams` to their prompts' places in `found`."""
    for row, scores, texts in zip(beams.rows.tolist(), beams.finished.tolist(), beams.sentences.tolist(), strict=True):
        ends = [text.index(eos_id) if eos_id in text else len(text) for text in texts]
        found[row] = [
            Sentence(text[:end], score)
            for text, end, score in zip(texts, ends, scores, strict=True)
            if score > -torch.inf
        ]
