"""The work that a training step cannot avoid, to be compared with what the machine could do."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from transformers import GPT2LMHeadModel

from lora_dist.data.sampler import Indices
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model.lora import LoraConv1D


@dataclass(frozen=True)
class Counts:
    """Contents of some global batches."""

    tokens: int
    """Tokens that go through the model: no padding, no last token of an example, shared ones once."""
    labels: int
    """Tokens that are predicted."""
    pairs: int
    """Pairs of a token and one that it attends to, itself included."""
    label_pairs: int
    """The same for the tokens that predict a label only."""


def count(examples: TokenizedExamples, batches: Iterable[Indices], share: bool) -> Counts:
    """Count `batches`, each of indices (n,); with `share` examples of one MR in a batch share it."""
    tokens = labels = pairs = label_pairs = 0
    for batch in batches:
        before = examples.prompt_lengths[batch] - 1  # the last of a prompt already predicts
        own = examples.label_counts[batch]
        firsts = np.unique(examples.mrs[batch], return_index=True)[1] if share else np.arange(len(batch))
        from_prompts = before * (before + 1) // 2
        from_labels = (before + own) * (before + own + 1) // 2 - from_prompts
        tokens += int(before[firsts].sum() + own.sum())
        labels += int(own.sum())
        pairs += int(from_prompts[firsts].sum() + from_labels.sum())
        label_pairs += int(from_labels.sum())
    return Counts(tokens, labels, pairs, label_pairs)


def necessary_work(model: GPT2LMHeadModel, counts: Counts) -> float:
    """Floating-point operations of the matrix products that no implementation can skip.

    2 per weight and token forward, and 2 more backward where something is trained below, for the gradient of the input;
    none for a frozen weight's own. A (r, in) and B (out, r) take 2 r (in + out) forward, the same for their own
    gradients, 2 r out for that of A x, and 2 r in for that of x where it is needed. Attention is two products forward
    and four backward, over the visible pairs. The last layer is needed where there is a label, except for its `c_attn`,
    which all tokens are attended to through (of its queries more than a label's are counted, 0.3 % of the whole); so
    are the logits, with 2 per weight and label forward and 2 backward.

    Args:
        model: with its adapter injected.
        counts: of the examples.
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
                (rank, width_in), width_out = layer.lora_A.shape, len(layer.lora_B)
                total += 2.0 * rank * tokens * ((2 + trained_below) * width_in + 3 * width_out)
                trained_below = True
            if layer is block.attn.c_attn:
                pairs = counts.label_pairs if last else counts.pairs
                total += 4.0 * pairs * int(model.config.n_embd) * (1 + 2 * trained_below)
    return total
