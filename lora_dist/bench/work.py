"""The floating-point operations that a training step cannot avoid, to compare with the speed of the machine."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from transformers import GPT2LMHeadModel

from lora_dist.data.sampler import Indices
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model.lora import LoraConv1D


@dataclass(frozen=True)
class TokenCounts:
    """Contents of some global batches."""

    tokens: int
    """Tokens that go through the model: without padding and the last token of each example, shared MRs once."""
    labels: int
    """Tokens that are predicted."""
    pairs: int
    """Pairs of a token and a token that it attends to, which may be itself."""
    label_pairs: int
    """Those of `pairs` whose first token predicts a label."""


def count_tokens(examples: TokenizedExamples, batches: Iterable[Indices], share_mrs: bool) -> TokenCounts:
    """Count the tokens of some global batches.

    Args:
        examples: the training set.
        batches: examples of each batch: (n,) each.
        share_mrs: whether the examples of a batch with the same MR share one copy of it.
    """
    tokens = labels = pairs = label_pairs = 0
    for batch in batches:
        before = examples.prompt_lengths[batch] - 1  # the last of a prompt already predicts
        own = examples.label_counts[batch]
        firsts = np.unique(examples.mrs[batch], return_index=True)[1] if share_mrs else np.arange(len(batch))
        from_prompts = before * (before + 1) // 2
        from_labels = (before + own) * (before + own + 1) // 2 - from_prompts
        tokens += int(before[firsts].sum() + own.sum())
        labels += int(own.sum())
        pairs += int(from_prompts[firsts].sum() + from_labels.sum())
        label_pairs += int(from_labels.sum())
    return TokenCounts(tokens, labels, pairs, label_pairs)


def necessary_work(model: GPT2LMHeadModel, counts: TokenCounts) -> float:
    """Compute the floating-point operations of the matrix products that no implementation can skip.

    A frozen weight takes 2 per element and token forward, and 2 backward for the gradient of its input if an adapter is
    below it. A (r, in) and B (out, r) take 2 r (in + out) forward and the same for their own gradients, 2 r out for the
    gradient of A x, and 2 r in for that of x if it is needed. Attention is two products forward and four backward over
    the visible pairs. The last layer is only needed at labels, except for its `c_attn`, as every token's keys and
    values are needed (its queries at other tokens are counted too, 0.3 % of the total). The logits take 2 per weight
    and label forward and 2 backward.

    Args:
        model: GPT-2 with its adapter.
        counts: contents of the batches.
    """
    total = 4.0 * int(model.lm_head.weight.numel()) * counts.labels
    trained_below = False
    for number, block in enumerate(model.transformer.h):
        last = number == len(model.transformer.h) - 1
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            tokens = counts.labels if last and layer is not block.attn.c_attn else counts.tokens
            size = (layer.weight() if isinstance(layer, LoraConv1D) else layer.weight).numel()
            total += 2.0 * int(size) * tokens * (1 + trained_below)
            if isinstance(layer, LoraConv1D):
                total += 2.0 * tokens * ((2 + trained_below) * layer.lora_A.numel() + 3 * layer.lora_B.numel())
                trained_below = True
            if layer is block.attn.c_attn:
                pairs = counts.label_pairs if last else counts.pairs
                total += 4.0 * pairs * int(model.config.n_embd) * (1 + 2 * trained_below)
    return total
