"""GPT-2 one token at a time, for several continuations (beams) of each of several prompts.

The prompt is computed once and seen by all its beams. What the beams add goes to one buffer, behind the prompt, in the
order in which it comes: a beam that changes its parent moves nothing, it only changes which entries it may look at.
Attention then is one product of a prompt's beams with all entries of that prompt, under a mask of ancestry. Entries
that nobody looks at any more are taken out now and then.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from lora_dist.model.gpt2 import causal_attention, run_body
from lora_dist.model.kernels.cpu import PackedLinear, can_pack, pack_layers

PRUNE_EVERY = 8
"""Steps after which entries that no beam looks at any more are taken out."""


def prepare(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Lay out `model`, in place, as decoding is fastest; it computes what it did."""
    if can_pack(model.device, model.dtype):
        pack_layers(model.requires_grad_(False), differentiable=False)
        model.lm_head = PackedLinear(model.lm_head.weight, None, differentiable=False)
        return model.eval()
    # The product with few rows reads the weight along the vocabulary.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.t().contiguous().t(), requires_grad=False)
    return model.eval()


class Decoder:
    """The state of some prompts and of the beams that go on from them."""

    def __init__(
        self, model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], beams: int, max_new_tokens: int
    ) -> None:
        """Compute the prompts; `logits` (prompts, vocabulary) are then those of the first new token.

        Args:
            model: a plain GPT-2 in evaluation mode.
            prompts: token ids, each at least one.
            beams: continuations of each prompt.
            max_new_tokens: how often `step` may be called.
        """
        self._model, self._beams = model, beams
        device, config = model.device, model.config
        self._heads = config.n_head
        lengths = [len(prompt) for prompt in prompts]
        # Padding stands between the prompt and its continuations; the mask hides it.
        width = max(lengths)
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        self._lengths = torch.tensor(lengths, device=device)
        self._filled = self._steps = 0
        # Room for all that may come, on a CPU taken from the system only as far as it is used.
        room = width + beams * max_new_tokens
        shape = (config.n_layer, 2, len(prompts), self._heads, room, config.n_embd // self._heads)
        self._cache = torch.empty(shape, dtype=model.dtype, device=device)
        self._buffer = torch.empty(len(prompts) * beams, config.vocab_size, dtype=model.dtype, device=device)
        self._visible = torch.zeros(len(prompts), beams, room, dtype=torch.bool, device=device)
        self._visible[:, :, :width] = (torch.arange(width, device=device) < self._lengths[:, None])[:, None]
        self._prompt_width = width
        positions = torch.arange(width, device=device).expand_as(ids)
        last = torch.arange(len(prompts), device=device) * width + self._lengths - 1
        self.logits = self._logits(ids, positions, None, last)

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Add one token to each beam; the logits of the next one, until the next call: (prompts, beams, vocabulary).

        Args:
            tokens: the tokens added: (prompts, beams).
            parents: the beams, as they were before, that they are added to: (prompts, beams).
        """
        suffix = self._visible[:, :, self._prompt_width : self._filled]
        suffix.copy_(suffix.gather(1, parents[..., None].expand_as(suffix)))
        if self._steps and self._steps % PRUNE_EVERY == 0:
            self._prune()
        start, stop = self._filled, self._filled + self._beams
        self._visible[:, :, start:stop] = torch.eye(self._beams, dtype=torch.bool, device=tokens.device)
        positions = (self._lengths + self._steps)[:, None].expand_as(tokens)
        self._steps += 1
        mask = torch.zeros((), dtype=self._cache.dtype, device=tokens.device).where(
            self._visible[:, None, :, :stop], -torch.inf
        )
        return self._logits(tokens, positions, mask, None).view(*tokens.shape, -1)

    def _prune(self) -> None:
        """Forget the entries that no beam looks at any more: those of hypotheses that have died out."""
        first, last = self._prompt_width, self._filled
        suffix = self._visible[:, :, first:last]
        alive = suffix.any(1)
        self._filled = first + int(alive.sum(1).max())
        order = alive.byte().argsort(dim=1, descending=True, stable=True)[:, : self._filled - first]
        self._visible[:, :, first : self._filled] = suffix.gather(2, order[:, None].expand(-1, self._beams, -1))
        self._visible[:, :, self._filled : last] = False
        for layer in self._cache:
            entries = order[None, :, None, :, None].expand(2, -1, self._heads, -1, layer.shape[-1])
            layer[:, :, :, first : self._filled] = layer[:, :, :, first:last].gather(3, entries)

    def keep(self, rows: Tensor) -> None:
        """Forget all prompts but `rows` (kept,), which are sorted."""
        used = self._cache[:, :, rows, :, : self._filled]
        self._cache = self._cache[:, :, : len(rows)]
        self._cache[:, :, :, :, : self._filled] = used
        self._visible, self._lengths = self._visible[rows], self._lengths[rows]

    def _logits(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Logits (wanted, vocabulary) after new tokens (prompts, n), whose keys and values go to the cache.

        Args:
            tokens: ids: (prompts, n).
            positions: which position each of them has: (prompts, n).
            mask: 0 or -inf, added to the scores of the entries that each may look at: (prompts, 1, n, entries); None is
                causal.
            wanted: indices among the prompts * n tokens; None is all.
        """
        prompts, count = tokens.shape
        start, stop = self._filled, self._filled + count

        def attend(layer: int, fused: Tensor) -> Tensor:
            query, key, value = fused.view(prompts, count, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            keys, values = self._cache[layer, :, :, :, :stop]
            keys[:, :, start:], values[:, :, start:] = key, value
            if mask is None:
                return causal_attention(fused.view(prompts, count, -1), self._heads, dropout=0.0).flatten(0, 1)
            # Not torch's fused kernel, which on a CPU takes up to twice as long with ten queries. Dense keys, as oneDNN
            # would make them so itself, and after turning them.
            scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.contiguous().transpose(2, 3)
            mixed: Tensor = scores.add_(mask).softmax(-1) @ values
            return mixed.transpose(1, 2).reshape(prompts * count, -1)

        hidden = run_body(self._model.transformer, tokens.flatten(), positions.flatten(), attend, wanted)
        self._filled = stop
        head = self._model.lm_head
        if isinstance(head, PackedLinear):
            return head.forward(hidden)
        # A fresh buffer of this size would be asked of the system, page by page, at every step.
        return torch.mm(hidden, head.weight.t(), out=self._buffer[: len(hidden)])
