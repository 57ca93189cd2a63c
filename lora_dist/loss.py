"""The trained objective: label-smoothed cross-entropy on the reference tokens, with logits nowhere else.

The vocabulary is the widest dimension of the model by far, so its gradient is computed along with the loss, in one
buffer of (labels, vocabulary) that lives no longer than the forward pass; what is kept for backward is (labels, width).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel

MAX_LOGITS = 2**26
"""Logits held at a time (256 MiB in fp32): longer batches go in chunks."""


class ReferenceLoss(nn.Module):
    """GPT-2 with a head that returns the loss on the labelled positions."""

    def __init__(self, gpt2: GPT2LMHeadModel, label_smoothing: float) -> None:
        super().__init__()
        self.body = gpt2.transformer
        self.head = LossHead(gpt2.lm_head.weight, label_smoothing)

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Sums over the labels, in nats: the smoothed cross-entropy that is trained, and the plain one: (2,) fp32.

        Args:
            input_ids: tokens, padded on the right: (rows, length).
            positions: flattened positions that predict a label: (labels,).
            labels: the tokens to predict: (labels,).
        """
        hidden = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        sums: Tensor = self.head(hidden.flatten(0, 1).index_select(0, positions), labels)
        return sums


class LossHead(nn.Module):
    """The frozen output projection and the cross-entropy in one.

    A module of its own, so that ZeRO-3 brings the weight together for its forward; backward does not need it again.
    """

    mean_row: Tensor

    def __init__(self, weight: nn.Parameter, label_smoothing: float) -> None:
        """Take the output projection `weight` (vocabulary, width), which may be tied to the embedding."""
        super().__init__()
        assert not weight.requires_grad, "the gradient of the output projection is not computed"
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.register_buffer("mean_row", weight.detach().float().mean(0), persistent=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Smoothed and plain cross-entropy, summed over labels: (2,) fp32, from hidden (labels, width)."""
        inputs = (hidden, self.weight, self.mean_row, labels, self.label_smoothing)
        sums: Tensor = _CrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]
        return sums


class _CrossEntropy(torch.autograd.Function):
    """Szegedy et al. 2016, section 7: (1 - e) (-log p[label]) + e (mean over the vocabulary of -log p).

    With z = h W^T its gradient in z is softmax(z) - (1 - e) onehot(label) - e / V. The last term never becomes a
    matrix: its product with W is e times the mean row of W, which gives the mean of z as well.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, mean_row: Tensor, labels: Tensor, label_smoothing: float
    ) -> Tensor:
        sums = hidden.new_zeros(2, dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, MAX_LOGITS // weight.shape[0])
        for start in range(0, len(labels), step):
            part, target = hidden[start : start + step], labels[start : start + step, None]
            logits = (part @ weight.t()).float()
            largest, wanted = logits.amax(-1, keepdim=True), logits.gather(-1, target)
            powers = logits.sub_(largest).exp_()
            total = powers.sum(-1, keepdim=True)
            normaliser = largest + total.log()
            mean = part.float() @ mean_row
            plain = (normaliser - wanted).sum()
            uniform = normaliser.sum() - mean.sum()
            sums += torch.stack([(1 - label_smoothing) * plain + label_smoothing * uniform, plain])
            if gradient is not None:
                powers.scatter_(-1, target, powers.gather(-1, target) - (1 - label_smoothing) * total)
                pulled = (powers.to(weight.dtype) @ weight).float() / total
                gradient[start : start + step] = pulled - label_smoothing * mean_row
        ctx.save_for_backward(gradient)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_sums[0].to(gradient.dtype), None, None, None, None
