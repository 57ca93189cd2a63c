"""The trained objective: label-smoothed cross-entropy on the reference tokens, with logits nowhere else.

The vocabulary is the widest dimension of the model by far, so its gradient is computed along with the loss, in one
buffer of (labels, vocabulary) that lives no longer than the forward pass; what is kept for backward is (labels, width).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel

from lora_dist.model.gpt2 import causal_attention, inverse, run_body, select, spread, visible_to_sharers
from lora_dist.model.kernels.cpu import pack, pack_layers, product

MAX_LOGITS = 2**26
"""Logits held at a time (256 MiB in fp32): longer batches go in chunks."""

CACHED_LOGITS = 2**18
"""Logits a CPU exponentiates at a time (1 MiB in fp32)."""


class ReferenceLoss(nn.Module):
    """GPT-2 with a head that returns the loss on the labelled positions."""

    def __init__(
        self, gpt2: GPT2LMHeadModel, label_smoothing: float, recompute: bool = False, packed: bool = False
    ) -> None:
        """Take a GPT-2 with its adapter, and its weights if they are to be packed.

        Args:
            gpt2: is changed if `packed`: it then serves this loss alone.
            label_smoothing: e of `_CrossEntropy`.
            recompute: see `gpt2.run_body`.
            packed: hold the frozen weights as `packed.py` does.
        """
        super().__init__()
        self.recompute = recompute
        if packed:
            pack_layers(gpt2, differentiable=True)
        self.body = gpt2.transformer
        self.head = LossHead(gpt2.lm_head.weight, label_smoothing, packed)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        wanted: Tensor,
        labels: Tensor,
        sharers: Tensor | None,
        rows: int,
        length: int,
    ) -> Tensor:
        """Sums over the labels, in nats: the smoothed cross-entropy that is trained, and the plain one: (2,) fp32.

        The arguments are the fields of `batches.Batch`.
        """
        attention = self.body.h[0].attn
        dropout = attention.attn_dropout.p if self.training else 0.0

        visible = None if sharers is None else visible_to_sharers(sharers)
        back = inverse(slots, rows * length)

        def attend(_: int, fused: Tensor) -> Tensor:
            padded = spread(fused, slots, back).view(rows, length, -1)
            return select(causal_attention(padded, attention.num_heads, dropout, visible).flatten(0, 1), slots, back)

        recompute = self.recompute and torch.is_grad_enabled()
        sums: Tensor = self.head(run_body(self.body, tokens, positions, attend, wanted, recompute), labels)
        return sums


class LossHead(nn.Module):
    """The frozen output projection and the cross-entropy in one.

    A module of its own, so that ZeRO-3 brings the weight together for its forward; backward does not need it again.
    """

    mean_row: Tensor

    def __init__(self, weight: nn.Parameter, label_smoothing: float, packed: bool = False) -> None:
        """Take the output projection `weight` (vocabulary, width), which may be tied to the embedding.

        With `packed`, products are made with copies of it, as an embedding has to stay as it is.
        """
        super().__init__()
        assert not weight.requires_grad, "the gradient of the output projection is not computed"
        self.weight = weight
        self.label_smoothing = label_smoothing
        self._packed = (pack(weight), pack(weight.t())) if packed else None
        self.register_buffer("mean_row", weight.detach().float().mean(0), persistent=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Smoothed and plain cross-entropy, summed over labels (labels,): (2,) fp32.

        Hidden (wanted, width) may have more rows than there are labels; those come last and count for nothing.
        """
        inputs = (hidden, self.weight, self._packed, self.mean_row, labels, self.label_smoothing)
        sums: Tensor = _CrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]
        return sums


class _CrossEntropy(torch.autograd.Function):
    """Szegedy et al. 2016, section 7: (1 - e) (-log p[label]) + e (mean over the vocabulary of -log p).

    With z = h W^T its gradient in z is softmax(z) - (1 - e) onehot(label) - e / V. The last term never becomes a
    matrix: its product with W is e times the mean row of W, which gives the mean of z as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        packed: tuple[Tensor, Tensor] | None,
        mean_row: Tensor,
        labels: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        sums = hidden.new_zeros(2, dtype=torch.float32)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, MAX_LOGITS // weight.shape[0])
        for start in range(0, len(labels), step):
            target = labels[start : start + step]
            rows = hidden[start : start + step]
            logits = rows @ weight.t() if packed is None else product(rows, packed[0])
            wanted = logits[: len(target)].gather(-1, target[:, None]).float()
            largest, total = _exponentiate(logits[: len(target)])
            normaliser = largest + total.log()
            plain = (normaliser - wanted).sum()
            uniform = normaliser.sum() - (hidden[start : start + len(target)].float() @ mean_row).sum()
            sums += torch.stack([(1 - label_smoothing) * plain + label_smoothing * uniform, plain])
            if gradient is not None:
                pulled = logits @ weight if packed is None else product(logits, packed[1])
                pulled = pulled[: len(target)].float() / total
                pulled -= (1 - label_smoothing) * weight[target].float() + label_smoothing * mean_row
                gradient[start : start + len(target)] = pulled
        ctx.save_for_backward(gradient)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_sums[0].to(gradient.dtype), None, None, None, None, None


def _exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Make logits (labels, vocabulary) exp(logit - largest) in place; each row's largest and sum: (labels, 1) fp32.

    On a CPU a few rows at a time, as it takes longer to get a fresh buffer for all in fp32 than to compute them.
    """
    at_once = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    largest, total = logits.new_empty(2, len(logits), 1, dtype=torch.float32)
    for start in range(0, len(logits), at_once):
        part = slice(start, start + at_once)
        powers = logits[part].float()
        torch.amax(powers, -1, keepdim=True, out=largest[part])
        total[part] = powers.sub_(largest[part]).exp_().sum(-1, keepdim=True)
        logits[part] = powers
    return largest, total
