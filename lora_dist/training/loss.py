"""The training loss: label-smoothed cross-entropy on the reference tokens, computed together with its gradient.

The vocabulary is by far the widest dimension of the model. So the forward pass computes loss and gradient in one buffer
of (labels, vocabulary), only at positions with a label, and keeps just (labels, width) for backward.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings
from lora_dist.data.collate import IGNORE, Batch
from lora_dist.data.shapes import BatchShape
from lora_dist.model.flat_adapter import FlatAdapter, Matrices
from lora_dist.model.gpt2 import RowIndex, causal_attention, pad_rows, run_body, take_rows, visible_in_segments
from lora_dist.model.kernels.common import PlainProjection, Projection
from lora_dist.model.kernels.select import Kernels
from lora_dist.model.masks import draw_integers, keep_limit


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
        others: Sequence[tuple[LoraSettings, Matrices, float]] = (),
        most_tokens: int | None = None,
    ) -> None:
        """Wrap a GPT-2 with its adapter, on the device that it will compute on.

        Args:
            gpt2: the model, which afterwards can only be used for this loss, as its frozen layers are packed and its
                adapter is one parameter.
            kernels: kernels of the device.
            label_smoothing: e of `_CrossEntropy`.
            gradient_checkpointing: see `gpt2.run_body`.
            partitioned: whether ZeRO-3 will partition the weights, which then stay plain parameters.
            others: settings, matrices and label smoothing of further adapters, which are trained at the same time.
            most_tokens: most tokens of a batch of one adapter, where dropout is drawn at once; None takes those of each
                batch, on which dropout then depends.
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
        self.adapter = FlatAdapter(
            gpt2, [(lora, matrices) for lora, matrices, _ in others], batched=kernels.BATCHED_ADAPTERS
        )
        self.body = gpt2.transformer
        self.head = LossHead(weight, projection, self.kernels)
        self.label_smoothing = [label_smoothing, *(smoothing for *_, smoothing in others)]
        self._most_tokens = most_tokens

    def forward(
        self, batch: Batch, scale: float | Sequence[float] | Tensor = 1.0, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Compute the training loss of a batch, which may be on another device.

        Args:
            batch: the batch, with a part for each of the adapters, or for one of them.
            scale: factor of the loss, or of each part's; a tensor is (parts,) fp32.
            first: the adapter of the first part.

        Returns:
            The smoothed cross-entropy summed over labels, times `scale`: (). And the smoothed and the plain
            cross-entropy of each part summed over its labels, in nats, without gradient: (parts, 2) fp32.
        """
        parts, batch = batch.parts, batch.to(self.head.mean_row.device)
        outputs = RowIndex(batch.loss_index, batch.loss_inverse)
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        dtype = self.head.weight.dtype
        self.adapter.assign(self.adapter(dtype, first, len(parts)), first)
        self._set_rows(parts, draws=self.training and self.kernels.DRAW_AT_ONCE and not again)
        hidden = run_body(
            self.body,
            batch.tokens,
            batch.positions,
            self._attention(batch),
            lambda values: take_rows(values, outputs),
            gradient_checkpointing=again,
        )
        scales = [scale] if isinstance(scale, int | float) else scale
        if len(parts) == 1:
            loss, sums = self.head(hidden, batch.labels, scales[0], self.label_smoothing[first])
            return loss, sums[None]
        own = zip(
            torch.split(hidden, [part.outputs for part in parts]),
            torch.split(batch.labels, [part.labels for part in parts]),
            scales,
            self.label_smoothing,
            strict=True,
        )
        losses, all_sums = zip(*(self.head(*each) for each in own), strict=True)
        return torch.stack(losses).sum(), torch.stack(all_sums)

    def _attention(self, batch: Batch) -> Callable[[int, Tensor], Tensor]:
        """Return the attention of a layer, see `gpt2.run_body`, within the rows of each part."""
        attention = self.body.h[0].attn
        dropout = attention.attn_dropout.p if self.training else 0.0
        visible = None if batch.segments is None else visible_in_segments(batch.segments)
        padded = RowIndex(batch.pad_index, batch.pad_inverse)
        # Neighbours with rows of the same length are computed together.
        blocks = [
            (sum(part.rows for part in same), length)
            for length, same in groupby(batch.parts, key=lambda part: part.length)
        ]

        def attend(_: int, fused: Tensor) -> Tensor:
            whole = pad_rows(fused, padded)
            rows = torch.split(whole, [n * length for n, length in blocks]) if len(blocks) > 1 else [whole]
            mixed = [
                causal_attention(self.kernels, own.view(*block, -1), attention.num_heads, dropout, visible).flatten(
                    0, 1
                )
                for own, block in zip(rows, blocks, strict=True)
            ]
            return take_rows(mixed[0] if len(mixed) == 1 else torch.cat(mixed), padded)

        return attend

    def _set_rows(self, parts: Sequence[BatchShape], *, draws: bool) -> None:
        """Prepare the layers for a forward pass: the rows of each adapter, and with `draws` their dropout."""
        last, adapter = self.body.h[-1], self.adapter
        few = {last.attn.c_proj, last.mlp.c_fc, last.mlp.c_proj}
        for layer in adapter.layers:
            layer.sizes = [part.outputs if layer in few else part.tokens for part in parts]
        stacked = adapter.stacked if len(parts) > 1 else None
        dropout = adapter.layers[0].dropout
        if not draws or not (dropout if stacked is None else stacked.drops):
            return
        assert len(set(parts)) == 1, "dropout is drawn at once for parts of the same shape"
        limits = keep_limit(dropout) if stacked is None else stacked.limits
        drawn = draw_integers(
            [layer.lora_A.shape[-1] for layer in adapter.layers],
            [layer.sizes[0] for layer in adapter.layers],
            self._most_tokens or parts[0].tokens,
            [None] if stacked is None else stacked.generators,
            self.head.mean_row.device,
        )
        for layer, own in zip(adapter.layers, drawn, strict=True):
            layer.drop = partial(self.kernels.drop, drawn=own, limits=limits)


class LossHead(nn.Module):
    """The frozen output projection and the cross-entropy in one module.

    It is a separate module so that ZeRO-3 gathers the weight for its forward pass; backward does not need it.
    """

    mean_row: Tensor

    def __init__(self, weight: nn.Parameter, projection: Projection, kernels: Kernels) -> None:
        """Set up the head.

        Args:
            weight: the output projection, which may be tied to the embedding: (vocabulary, width).
            projection: computes products with `weight`.
            kernels: kernels of the device.
        """
        super().__init__()
        self.weight = weight
        self._projection, self._kernels = projection, kernels
        self.register_buffer("mean_row", weight.detach().float().mean(0), persistent=False)

    def forward(
        self, hidden: Tensor, labels: Tensor, scale: float | Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Compute loss () and sums (2,) of one adapter, see `ReferenceLoss`.

        Args:
            hidden: last hidden states: (outputs, width). Rows beyond the number of label slots are padding.
            labels: target tokens, `collate.IGNORE` for none: (labels,).
            scale: factor of the loss; a tensor is (), fp32.
            label_smoothing: e of `_CrossEntropy`.
        """
        own = self.weight, self._projection, self._kernels, self.mean_row, label_smoothing
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
