"""GPT-2 with a KV cache: one token per step for several continuations (beams) of each of several prompts.

A prompt is computed once and shared by its beams. The entries that the beams add are appended to the same buffer, in
the order of the steps. A beam that changes its parent copies no entries; only its mask of visible entries changes. So
attention is one product of a prompt's beams with all entries of that prompt, masked to each beam's ancestors. Entries
that no beam can see any more are removed every few steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, GPT2Model

from lora_dist.model.gpt2 import causal_attention, run_body
from lora_dist.model.kernels.common import Projection
from lora_dist.model.kernels.select import Kernels, kernels_for

PRUNE_EVERY = 8
"""Steps after which entries that no beam can see any more are removed."""


@dataclass(frozen=True)
class DecodingModel:
    """A frozen GPT-2 in evaluation mode, with its layers packed for decoding on its device."""

    body: GPT2Model
    projection: Projection
    kernels: Kernels
    device: torch.device
    dtype: torch.dtype

    @property
    def positions(self) -> int:
        """Positions of the model, the most tokens of a text."""
        return int(self.body.config.n_positions)


def lay_out(gpt2: GPT2LMHeadModel) -> DecodingModel:
    """Lay out a plain `gpt2` for decoding on its device; it can be used for nothing else afterwards."""
    kernels = kernels_for(gpt2.device)
    gpt2.requires_grad_(False).eval()
    kernels.freeze_layers(gpt2, differentiable=False)
    projection = kernels.projection(gpt2.lm_head.weight, differentiable=False)
    return DecodingModel(gpt2.transformer, projection, kernels, gpt2.device, gpt2.dtype)


class KVCache:
    """Keys and values of prompts and of the beams that continue them, and which entries each beam can see."""

    def __init__(self, model: DecodingModel, prompts: Sequence[Sequence[int]], beams: int, max_new_tokens: int) -> None:
        """Compute the prompts; `logits` (prompts, vocabulary) are then those of the first new token.

        Args:
            model: from `lay_out`.
            prompts: token ids of each prompt, at least one.
            beams: continuations per prompt.
            max_new_tokens: how often `step` may be called.
        """
        self._model, self._beams = model, beams
        device, config = model.device, model.body.config
        self._heads = config.n_head
        lengths = [len(prompt) for prompt in prompts]
        # A prompt's padding is followed by its continuations, and hidden by the mask.
        width = max(lengths)
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        self._lengths = torch.tensor(lengths, device=device)
        self._used = self._steps = 0
        # Room for the entries of all steps; on a CPU the system provides a page only when it is written.
        room = width + beams * max_new_tokens
        shape = (config.n_layer, 2, len(prompts), self._heads, room, config.n_embd // self._heads)
        self._entries = torch.empty(shape, dtype=model.dtype, device=device)
        # Allocated once: the system would otherwise provide its pages one by one in each step.
        self._logits_buffer = torch.empty(len(prompts) * beams, config.vocab_size, dtype=model.dtype, device=device)
        self._visible = torch.zeros(len(prompts), beams, room, dtype=torch.bool, device=device)
        self._visible[:, :, :width] = (torch.arange(width, device=device) < self._lengths[:, None])[:, None]
        self._prompt_width = width
        positions = torch.arange(width, device=device).expand_as(ids)
        last = torch.arange(len(prompts), device=device) * width + self._lengths - 1
        self.logits = self._forward(ids, positions, None, last)

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append one token to each beam and compute the logits of the next one: (prompts, beams, vocabulary).

        The next call overwrites the result.

        Args:
            tokens: the tokens to append: (prompts, beams).
            parents: the beam of the previous step that each continues: (prompts, beams).
        """
        generated = self._visible[:, :, self._prompt_width : self._used]
        generated.copy_(generated.gather(1, parents[..., None].expand_as(generated)))
        if self._steps and self._steps % PRUNE_EVERY == 0:
            self._prune()
        start, stop = self._used, self._used + self._beams
        self._visible[:, :, start:stop] = torch.eye(self._beams, dtype=torch.bool, device=tokens.device)
        positions = (self._lengths + self._steps)[:, None].expand_as(tokens)
        self._steps += 1
        mask = torch.zeros((), dtype=self._entries.dtype, device=tokens.device).where(
            self._visible[:, None, :, :stop], -torch.inf
        )
        return self._forward(tokens, positions, mask, None).view(*tokens.shape, -1)

    def _prune(self) -> None:
        """Remove the entries that no beam can see any more, which are those of dropped hypotheses."""
        first, last = self._prompt_width, self._used
        generated = self._visible[:, :, first:last]
        alive = generated.any(1)
        self._used = first + int(alive.sum(1).max())
        order = alive.byte().argsort(dim=1, descending=True, stable=True)[:, : self._used - first]
        self._visible[:, :, first : self._used] = generated.gather(2, order[:, None].expand(-1, self._beams, -1))
        self._visible[:, :, self._used : last] = False
        for layer in self._entries:
            kept = order[None, :, None, :, None].expand(2, -1, self._heads, -1, layer.shape[-1])
            layer[:, :, :, first : self._used] = layer[:, :, :, first:last].gather(3, kept)

    def keep(self, rows: Tensor) -> None:
        """Drop all prompts except `rows` (kept,), which are sorted."""
        used = self._entries[:, :, rows, :, : self._used]
        self._entries = self._entries[:, :, : len(rows)]
        self._entries[:, :, :, :, : self._used] = used
        self._visible, self._lengths = self._visible[rows], self._lengths[rows]

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, output_index: Tensor | None) -> Tensor:
        """Append new tokens to the cache and compute the logits after them: (outputs, vocabulary).

        Args:
            tokens: token ids: (prompts, n).
            positions: position of each token: (prompts, n).
            mask: 0 or -inf, added to the attention scores: (prompts, 1, n, entries). None is causal.
            output_index: indices, among the prompts * n tokens, of those whose logits are computed; None is all.
        """
        prompts, length = tokens.shape
        start, stop = self._used, self._used + length
        kernels = self._model.kernels

        def attend(layer: int, fused: Tensor) -> Tensor:
            query, key, value = fused.view(prompts, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            keys, values = self._entries[layer, :, :, :, :stop]
            keys[:, :, start:], values[:, :, start:] = key, value
            if mask is None:
                rows = fused.view(prompts, length, -1)
                return causal_attention(kernels, rows, self._heads, dropout=0.0).flatten(0, 1)
            mixed = kernels.cached_attention(query, keys, values, mask)
            return mixed.transpose(1, 2).reshape(prompts * length, -1)

        take = None if output_index is None else partial(torch.index_select, dim=0, index=output_index)
        hidden = run_body(self._model.body, tokens.flatten(), positions.flatten(), attend, take)
        self._used = stop
        return self._model.projection.logits(hidden, self._logits_buffer[: len(hidden)])
