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
    captured: bool = True
    """Whether steps are CUDA graphs, where the device has them."""

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
        """Compute the prompts; `logits` (prompts, columns) are then those of the first new token.

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
        self._prompt_width = width = max(lengths)
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        self._lengths = torch.tensor(lengths, device=device)
        self._steps = torch.zeros(1, dtype=torch.long, device=device)
        self._used = self._since_pruned = 0
        self._most = width + beams * max_new_tokens
        room = self._room_for(width)
        shape = (2, len(prompts), self._heads, room, config.n_embd // self._heads)
        self._entries = [self._allocate(*shape) for _ in range(config.n_layer)]
        # Allocated once: the system would otherwise provide its pages one by one in each step.
        self._logits_buffer = torch.empty(
            len(prompts) * beams, model.projection.columns, dtype=model.dtype, device=device
        )
        self._visible = torch.zeros(len(prompts), beams, room, dtype=torch.bool, device=device)
        self._visible[:, :, :width] = (torch.arange(width, device=device) < self._lengths[:, None])[:, None]
        self._new_entries = torch.eye(beams, dtype=torch.bool, device=device)
        self._index = torch.zeros(beams, dtype=torch.long, device=device)
        self._stop = width
        self._where: slice | Tensor = slice(0, width)
        positions = torch.arange(width, device=device).expand_as(ids)
        last = torch.arange(len(prompts), device=device) * width + self._lengths - 1
        self.logits = self._forward(ids, positions, None, last)
        self._used = width

    def begin_block(self, steps: int) -> bool:
        """Prepare for up to `steps` calls of `step`, all of one shape if the device's blocks have several steps.

        Returns:
            Whether entries were moved to other tensors.
        """
        if self._since_pruned >= PRUNE_EVERY:
            self._prune()
        first, self._used = self._used, self._used + steps * self._beams
        if grows := self._used > self._entries[0].shape[3]:
            self._grow(first)
        if self._model.kernels.STEPS_PER_BLOCK == 1:
            self._stop, self._where = self._used, slice(first, self._used)
        else:
            self._stop, self._where = self._entries[0].shape[3], self._index
            torch.arange(first, first + self._beams, out=self._index)
        self._since_pruned += steps
        return grows

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each beam and compute the logits of the next one: (prompts, beams, columns).

        The next call overwrites the result.

        Args:
            tokens: the tokens to append: (prompts, beams).
        """
        new = self._new_entries.expand(len(tokens), -1, -1)
        _write(self._visible, 2, self._where, new)
        positions = (self._lengths + self._steps)[:, None].expand_as(tokens)
        hidden = ~self._visible[:, None, :, : self._stop]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=tokens.device).masked_fill_(hidden, -torch.inf)
        logits = self._forward(tokens, positions, mask, None)
        self._steps += 1
        self._index += self._beams
        return logits.view(*tokens.shape, -1)

    def follow(self, parents: Tensor) -> None:
        """Let each beam see what its parent saw: the beam of the last step that it continues, (prompts, beams)."""
        generated = self._visible[:, :, self._prompt_width : self._stop]
        generated.copy_(generated.gather(1, parents[..., None].expand_as(generated)))

    def keep(self, rows: Tensor) -> None:
        """Drop all prompts except `rows` (kept,), which are sorted."""
        for number, layer in enumerate(self._entries):
            used = layer[:, rows, :, : self._used]
            self._entries[number] = layer[:, : len(rows)]
            self._entries[number][:, :, :, : self._used] = used
        self._visible, self._lengths = self._visible[rows], self._lengths[rows]

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
        self._since_pruned = 0

    def _grow(self, filled: int) -> None:
        """Make room for `_used` entries, one layer at a time, and keep the first `filled`."""
        room = self._room_for(self._used)
        for number, layer in enumerate(self._entries):
            self._entries[number] = self._allocate(*layer.shape[:3], room, layer.shape[4])
            self._entries[number][:, :, :, :filled] = layer[:, :, :, :filled]
            del layer  # before the next one is allocated
        visible = self._visible.new_zeros(*self._visible.shape[:2], room)
        visible[:, :, :filled] = self._visible[:, :, :filled]
        self._visible = visible

    def _room_for(self, entries: int) -> int:
        """Round `entries` per prompt up to what is allocated."""
        step = self._model.kernels.CACHE_STEP
        return min(-(-entries // step) * step, self._most)

    def _allocate(self, *shape: int) -> Tensor:
        """Allocate entries. In blocks of several steps, attention reads them before they are written, and hides them:
        they must be finite.
        """
        kind = torch.empty if self._model.kernels.STEPS_PER_BLOCK == 1 else torch.zeros
        return kind(shape, dtype=self._model.dtype, device=self._model.device)

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, output_index: Tensor | None) -> Tensor:
        """Write new tokens' entries to the cache and compute the logits after them: (outputs, columns).

        Args:
            tokens: token ids: (prompts, n).
            positions: position of each token: (prompts, n).
            mask: 0 or -inf, added to the attention scores: (prompts, 1, n, entries). None is causal.
            output_index: indices, among the prompts * n tokens, of those whose logits are computed; None is all.
        """
        prompts, length = tokens.shape
        kernels = self._model.kernels

        def attend(layer: int, fused: Tensor) -> Tensor:
            query, *new = fused.view(prompts, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            keys, values = self._entries[layer]
            for entries, added in zip((keys, values), new, strict=True):
                _write(entries, 2, self._where, added)
            if mask is None:
                rows = fused.view(prompts, length, -1)
                return causal_attention(kernels, rows, self._heads, dropout=0.0).flatten(0, 1)
            mixed = kernels.cached_attention(query, keys[:, :, : self._stop], values[:, :, : self._stop], mask)
            return mixed.transpose(1, 2).reshape(prompts * length, -1)

        take = None if output_index is None else partial(torch.index_select, dim=0, index=output_index)
        hidden = run_body(self._model.body, tokens.flatten(), positions.flatten(), attend, take)
        return self._model.projection.logits(hidden, self._logits_buffer[: len(hidden)])


def _write(target: Tensor, dim: int, where: slice | Tensor, values: Tensor) -> None:
    """Copy `values` to the places `where` of a dimension; a tensor of places can change between replays of a graph."""
    if isinstance(where, slice):
        target.narrow(dim, where.start, where.stop - where.start).copy_(values)
    else:
        target.index_copy_(dim, where, values)
