"""The hypotheses of a beam search: which tokens are banned, which continuations are best, which sentences have ended.

Every function is tensor operations over all prompts at once, in which the host waits for nothing, so that a step can be
a CUDA graph. The shapes are the same in each step: texts are right-aligned, the newest token last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_dist.config import DecodeSettings
from lora_dist.model.kernels.select import Kernels


@dataclass
class Beams:
    """The hypotheses of all prompts in the batch; K is the number of beams, T the length of the longest sentence."""

    rows: Tensor
    """Index of each prompt among all prompts: (prompts,)."""
    running: Tensor
    """Sums of log-probabilities of the running hypotheses, best first: (prompts, K)."""
    history: Tensor
    """Their tokens, after those of the prompt that belong to the scope of n-grams and after -1 as padding: (prompts, K,
    scope + T)."""
    finished: Tensor
    """Scores of the finished hypotheses, best first, -inf for one still missing: (prompts, K)."""
    sentences: Tensor
    """Their tokens, with end-of-text, after other tokens: (prompts, K, T)."""
    lengths: Tensor
    """Tokens of each finished hypothesis, with end-of-text: (prompts, K)."""
    done: Tensor
    """Whether a prompt's search has ended: (prompts,)."""

    def take(self, rows: Tensor) -> "Beams":
        """Return only the prompts `rows` (n,)."""
        return Beams(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Rules:
    """What `advance` needs of the settings, on the device."""

    def __init__(self, settings: DecodeSettings, eos_id: int, device: torch.device) -> None:
        """Prepare the rules.

        Args:
            settings: settings of the search.
            eos_id: id of the end-of-text token.
            device: device of the search.
        """
        self.beams, self.longest, self.eos_id = settings.num_beams, settings.max_new_tokens, eos_id
        self.early_stopping = settings.early_stopping
        lengths = torch.arange(1, self.longest + 1, dtype=torch.float64)
        self.divisors = lengths.pow(settings.length_penalty).float().to(device)
        """Length ** length_penalty of each length from 1: (T,)."""
        # The sum can only fall, but divided by a greater length to a positive power it may still rise.
        rises = settings.early_stopping == "never" and settings.length_penalty > 0
        self.bounds = self.divisors[-1:].expand(self.longest) if rises else self.divisors
        """Divisor of the best score that a hypothesis of each length from 1 may still get: (T,)."""


def start(prompts: Sequence[Sequence[int]], settings: DecodeSettings, device: torch.device) -> Beams:
    """Return the empty hypotheses of each prompt."""
    shape, longest = (len(prompts), settings.num_beams), settings.max_new_tokens
    scope = prompts if settings.ngram_scope == "all" else [[] for _ in prompts]
    width = max(map(len, scope)) + longest
    texts = torch.tensor([[-1] * (width - len(text)) + list(text) for text in scope], dtype=torch.long, device=device)
    return Beams(
        rows=torch.arange(len(prompts), device=device),
        running=torch.zeros(shape, device=device),
        history=texts[:, None].repeat(1, shape[1], 1),
        finished=torch.full(shape, -torch.inf, device=device),
        sentences=torch.zeros(*shape, longest, dtype=torch.long, device=device),
        lengths=torch.zeros(shape, dtype=torch.long, device=device),
        done=torch.zeros(len(prompts), dtype=torch.bool, device=device),
    )


def repetitions(history: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Find the tokens that would complete an n-gram of the history a second time.

    Args:
        history: tokens in the scope of n-grams so far, after -1 as padding: (prompts, K, t).
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


def candidates(
    kernels: Kernels, logits: Tensor, vocabulary: int, running: Tensor, banned: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the `k` best continuations of all hypotheses of each prompt.

    Args:
        kernels: kernels of the device.
        logits: logits of the next token, which may be overwritten: (prompts, K, columns).
        vocabulary: vocabulary size; further columns are padding.
        running: sums of log-probabilities so far: (prompts, K).
        banned: see `repetitions`.
        k: continuations to find.

    Returns:
        Sums of log-probabilities, parents (hypotheses) and tokens, best first: each (prompts, k).
    """
    each = min(k, vocabulary)
    repeated, ban = (part.flatten(0, 1) for part in banned)
    best, tokens = kernels.top_tokens(logits.flatten(0, 1), vocabulary, repeated, ban, each)
    scores = (running[..., None] + best.view(*running.shape, each)).flatten(1)
    scores, places = F.pad(scores, (0, max(0, k - scores.shape[1])), value=-torch.inf).topk(k, -1)
    places = places.clamp(max=running.shape[1] * each - 1)  # padding, if the vocabulary is tiny
    return scores, places // each, tokens.view(len(running), -1).gather(1, places)


def advance(beams: Beams, scores: Tensor, parents: Tensor, tokens: Tensor, longer_than: Tensor, rules: Rules) -> Tensor:
    """Finish and extend hypotheses, in place.

    Args:
        beams: the hypotheses.
        scores: sums of log-probabilities of 2 K candidates, best first: (prompts, 2 K).
        parents: the hypothesis that each candidate extends: (prompts, 2 K).
        tokens: the token that each candidate adds: (prompts, 2 K).
        longer_than: tokens of the hypotheses so far: (1,).
        rules: rules of the search.

    Returns:
        Parents of the hypotheses that are continued: (prompts, K).
    """
    width = rules.beams
    texts = torch.cat([_pick(beams.history, parents)[..., 1:], tokens[..., None]], -1)
    ended, last = tokens == rules.eos_id, longer_than == rules.longest - 1
    finishing = (ended | last)[:, :width] & ~beams.done[:, None]
    divisor, bound = rules.divisors.index_select(0, longer_than), rules.bounds.index_select(0, longer_than)
    finished = (scores[:, :width] / divisor).masked_fill(~finishing, -torch.inf)
    best, order = torch.cat([beams.finished, finished], 1).topk(width, 1)
    beams.finished.copy_(best)
    sentences = torch.cat([beams.sentences, texts[:, :width, -rules.longest :]], 1)
    beams.sentences.copy_(_pick(sentences, order))
    length = (longer_than + 1).expand_as(beams.lengths)
    beams.lengths.copy_(torch.cat([beams.lengths, length], 1).gather(1, order))
    best, order = scores.masked_fill(ended, -torch.inf).topk(width, 1)
    beams.running.copy_(best)
    beams.history.copy_(_pick(texts, order))
    full = beams.finished[:, -1].isfinite()
    if rules.early_stopping != "true":
        full = beams.done | (full & (beams.running[:, 0] / bound <= beams.finished[:, -1]))
    beams.done.copy_(full)
    return parents.gather(1, order)


def _pick(texts: Tensor, order: Tensor) -> Tensor:
    """Gather the texts (prompts, n, T) at `order` (prompts, k): (prompts, k, T)."""
    return texts.gather(1, order[..., None].expand(-1, -1, texts.shape[-1]))
