"""The training loss: label-smoothed cross-entropy on the reference tokens, computed together with its gradient.

The vocabulary is by far the widest dimension of the model. So the forward pass computes loss and gradient in one buffer
of (labels, vocabulary), only at positions with a label, and keeps just (labels, width) for backward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel

from lora_dist.data.collate import IGNORE, Batch
from lora_dist.data.shapes import BatchShape
from lora_dist.model.flat_adapter import FlatAdapter
from lora_dist.model.gpt2 import RowIndex, causal_attention, pad_rows, run_body, take_rows, visible_in_segments
from lora_dist.model.kernels.common import PlainProjection, Projection
from lora_dist.model.kernels.select import Kernels
from lora_dist.model.lora import draw_masks


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
        """Wrap a GPT-2 with its adapter, on the device that it will compute on.

        Args:
            gpt2: the model, which afterwards can only be used for this loss, as its frozen layers are packed and its
                adapter is one parameter.
            kernels: kernels of the device.
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
        self.adapter = FlatAdapter(gpt2)
        self.body = gpt2.transformer
        self.head = LossHead(weight, projection, label_smoothing, self.kernels)

    def forward(self, batch: Batch, scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Compute the training loss of a batch, which may be on another device.

        Args:
            batch: the batch.
            scale: factor of the loss; a tensor is (), fp32.

        Returns:
            The smoothed cross-entropy summed over labels, times `scale`: (). And the smoothed and the plain
            cross-entropy summed over labels, in nats, without gradient: (2,) fp32.
        """
        shape, batch = batch.shape, batch.to(self.head.mean_row.device)
        attention = self.body.h[0].attn
        dropout = attention.attn_dropout.p if self.training else 0.0
        visible = None if batch.segments is None else visible_in_segments(batch.segments)
        padded, outputs = (
            RowIndex(batch.pad_index, batch.pad_inverse),
            RowIndex(batch.loss_index, batch.loss_inverse),
        )

        def attend(_: int, fused: Tensor) -> Tensor:
            queries_keys_values = pad_rows(fused, padded).view(shape.rows, shape.length, -1)
            mixed = causal_attention(self.kernels, queries_keys_values, attention.num_heads, dropout, visible)
            return take_rows(mixed.flatten(0, 1), padded)

        again = self.gradient_checkpointing and torch.is_grad_enabled()
        dtype = self.head.weight.dtype
        self.adapter.assign(self.adapter(dtype))
        if self.training and self.kernels.DRAW_MASKS_AT_ONCE and not again:
            draw_masks(self.adapter.layers, self._rows(shape), dtype)
        hidden = run_body(
            self.body,
            batch.tokens,
            batch.positions,
            attend,
            lambda values: take_rows(values, outputs),
            gradient_checkpointing=again,
        )
        loss, sums = self.head(hidden, batch.labels, scale)
        return loss, sums

    def _rows(self, shape: BatchShape) -> list[int]:
        """Return the rows that each wrapped layer gets: (layers,)."""
        last = self.body.h[-1]
        few = {last.attn.c_proj, last.mlp.c_fc, last.mlp.c_proj}
        return [shape.outputs if layer in few else shape.tokens for layer in self.adapter.layers]


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

    def forward(self, hidden: Tensor, labels: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
        """Compute the results of `ReferenceLoss`.

        Args:
            hidden: last hidden states: (outputs, width). Rows beyond the number of label slots are padding.
            labels: target tokens, `collate.IGNORE` for none: (labels,).
            scale: factor of the loss; a tensor is (), fp32.
        """
        own = self.weight, self._projection, self._kernels, self.mean_row, self.label_smoothing
        results: tuple[Tensor, Tensor] = _CrossEntropy.apply(hidden, labels, scale, *own)  # type: ignore[no-untyped-call]
        return results


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
        labels: Tensor,
        scale: float | Tensor,
        weight: Tensor,
        projection: Projection,
        kernels: Kernels,
        mean_row: Tensor,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        sums = hidden.new_zeros(2, dtype=torch.float32)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        vocabulary, keep = len(weight), 1 - label_smoothing
        step = max(1, kernels.MAX_LOGITS // vocabulary)
        for start in range(0, len(labels), step):
            target = labels[start : start + step, None]
            valid, target = target != IGNORE, target.clamp(min=0)
            states = hidden[start : start + len(target)]
            logits = projection.logits(hidden[start : start + step])
            at_label = logits[: len(target)].gather(-1, target).float()
            normaliser, total = kernels.exponentiate(logits[: len(target), :vocabulary])
            plain = ((normaliser - at_label) * valid).sum()
            uniform = (normaliser * valid).sum() - ((states.float() @ mean_row)[:, None] * valid).sum()
            sums += torch.stack([keep * plain + label_smoothing * uniform, plain])
            if gradient is not None:
                pulled = projection.gradient(logits)[: len(target)].float() / total
                pulled -= keep * weight[target[:, 0]].float() + label_smoothing * mean_row
                # Scaled in fp32 and rounded once, so that bf16 does not depend on the scale.
                gradient[start : start + len(target)] = pulled.mul_(valid * scale)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(sums)
        return sums[0] * scale, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, *[None] * 7
