"""The training loss: label-smoothed cross-entropy on the reference tokens, computed together with its gradient.

The vocabulary is by far the widest dimension of the model. So the forward pass computes loss and gradient in one buffer
of (labels, vocabulary), only at positions with a label, and keeps just (labels, width) for backward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel

from lora_dist.model.gpt2 import causal_attention, inverse_index, pad_rows, run_body, take_rows, visible_in_segments
from lora_dist.model.kernels.common import PlainProjection, Projection
from lora_dist.model.kernels.select import Kernels

MAX_LOGITS = 2**26
"""Logits computed at a time (256 MiB in fp32); larger batches are computed in chunks."""


class ReferenceLoss(nn.Module):
    """GPT-2 with a head that returns the loss at the positions with a label."""

    def __init__(
        self,
        gpt2: GPT2LMHeadModel,
        kernels: Kernels,
        label_smoothing: float,
        *,
        gradient_checkpointing: bool = False,
        partitioned: bool = False,
    ) -> None:
        """Wrap a GPT-2 with its adapter.

        Args:
            gpt2: the model, which afterwards can only be used for this loss, as its frozen layers are packed.
            kernels: kernels of the device that it will compute on.
            label_smoothing: e of `_CrossEntropy`.
            gradient_checkpointing: see `gpt2.run_body`.
            partitioned: whether ZeRO-3 will partition the weights, which then stay plain parameters.
        """
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.kernels = kernels
        weight = gpt2.lm_head.weight
        assert not weight.requires_grad, "the gradient of the output projection is not computed"
        if partitioned:
            projection: Projection = PlainProjection(weight)
        else:
            self.kernels.freeze_layers(gpt2, differentiable=True)
            projection = self.kernels.projection(weight, differentiable=True)
        self.body = gpt2.transformer
        self.head = LossHead(weight, projection, label_smoothing, self.kernels)

    def forward(
        self,
        *,
        tokens: Tensor,
        positions: Tensor,
        pad_index: Tensor,
        loss_index: Tensor,
        labels: Tensor,
        segments: Tensor | None,
        rows: int,
        length: int,
    ) -> Tensor:
        """Compute the smoothed cross-entropy (the training loss) and the plain one, summed over labels: (2,) fp32.

        Both are in nats. The arguments are the fields of `collate.Batch`.
        """
        attention = self.body.h[0].attn
        dropout = attention.attn_dropout.p if self.training else 0.0
        visible = None if segments is None else visible_in_segments(segments)
        inverse = inverse_index(pad_index, rows * length)

        def attend(_: int, fused: Tensor) -> Tensor:
            padded = pad_rows(fused, pad_index, inverse).view(rows, length, -1)
            mixed = causal_attention(self.kernels, padded, attention.num_heads, dropout, visible)
            return take_rows(mixed.flatten(0, 1), pad_index, inverse)

        again = self.gradient_checkpointing and torch.is_grad_enabled()
        hidden = run_body(self.body, tokens, positions, attend, loss_index, gradient_checkpointing=again)
        sums: Tensor = self.head(hidden, labels)
        return sums


class LossHead(nn.Module):
    """The frozen output projection and the cross-entropy in one module.

    It is a separate module so that ZeRO-3 gathers the weight for its forward pass; backward does not need it.
    """

    mean_row: Tensor

    def __init__(self, weight: nn.Parameter, projection: Projection, label_smoothing: float, kernels: Kernels) -> None:
        """Set up the head.

        Args:
            weight: the output projection, which may be tied to the embedding: (vocabulary, width).
            projection: computes products with `weight`.
            label_smoothing: e of `_CrossEntropy`.
            kernels: kernels of the device.
        """
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing
        self._projection, self._kernels = projection, kernels
        self.register_buffer("mean_row", weight.detach().float().mean(0), persistent=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Compute the smoothed and the plain cross-entropy, summed over labels, in nats: (2,) fp32.

        Args:
            hidden: last hidden states: (outputs, width). Rows beyond the number of labels are padding.
            labels: target tokens: (labels,).
        """
        inputs = (hidden, self.weight, self._projection, self._kernels, self.mean_row, labels, self.label_smoothing)
        sums: Tensor = _CrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]
        return sums


class _CrossEntropy(torch.autograd.Function):
    """Label-smoothed cross-entropy: (1 - e) (-log p[label]) + e (mean over the vocabulary of -log p).

    The formula is that of Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7. With z = h W^T, the
    gradient in z is softmax(z) - (1 - e) onehot(label) - e / V. The last term is never a matrix: its product with W is
    e times the mean row of W, and h times that row is the mean of z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        projection: Projection,
        kernels: Kernels,
        mean_row: Tensor,
        labels: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        sums = hidden.new_zeros(2, dtype=torch.float32)
        # In fp32: backward scales it before the one rounding, so that bf16 does not depend on the scale.
        gradient = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        step = max(1, MAX_LOGITS // weight.shape[0])
        for start in range(0, len(labels), step):
            target = labels[start : start + step]
            logits = projection.logits(hidden[start : start + step])
            at_label = logits[: len(target)].gather(-1, target[:, None]).float()
            maximum, total = kernels.exponentiate(logits[: len(target)])
            normaliser = maximum + total.log()
            plain = (normaliser - at_label).sum()
            uniform = normaliser.sum() - (hidden[start : start + len(target)].float() @ mean_row).sum()
            sums += torch.stack([(1 - label_smoothing) * plain + label_smoothing * uniform, plain])
            if gradient is not None:
                pulled = projection.gradient(logits)[: len(target)].float() / total
                pulled -= (1 - label_smoothing) * weight[target].float() + label_smoothing * mean_row
                gradient[start : start + len(target)] = pulled
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_sums[0]).to(ctx.dtype), *[None] * 6
