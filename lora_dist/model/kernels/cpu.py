"""Kernels for CPU cores: frozen weights packed for oneDNN, and wide tensors in pieces that fit the cache."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_dist.model.kernels.common import ban_values, top_of_blocks, whole_blocks
from lora_dist.model.kernels.common import drop as drop
from lora_dist.model.kernels.glibc import keep_freed_memory
from lora_dist.model.kernels.graphs import GraphRecorder
from lora_dist.model.kernels.packed import freeze_layers as freeze_layers
from lora_dist.model.kernels.packed import projection as projection

SHAPE_STEP = 16
"""Tokens and labels of a forward pass, and the padded row length, are rounded up to a multiple of this. oneDNN compiles
code for each shape of a product, which takes some milliseconds and 0.7 MiB that it never frees: training GPT-2 Small in
bf16 held 1,416 MiB with 32, 1,522 with 16, 1,671 with 8."""

STATIC_SHAPES = 0
"""Most shapes of the micro-batches of a training; 0 rounds up each by itself, as only CUDA graphs need few shapes."""

DEV_BATCH_SIZE = 16
"""Dev examples per forward pass; the result does not depend on it."""

DRAW_AT_ONCE = False
"""Whether the dropout of all layers is drawn together; one layer at a time stays in the cache."""

CHUNK_TOKENS = 2**14
"""Tokens per decoding chunk beyond which decoding gets no faster."""

STEPS_PER_BLOCK = 1
"""Decoding steps of one shape, after which finished prompts may leave and the cache be pruned."""

LEAVE_AT = 1 / 8
"""Fraction of finished prompts at which they leave the batch, which copies the cache of the others."""

CACHE_STEP = 2**20
"""Entries per prompt that the cache grows by: enough for all, as the system provides a page only once written."""

BATCHED_ADAPTERS = False
"""Whether the products of several adapters with their own rows are one batched product; see `stacked`."""

MAX_LOGITS = 2**26
"""Logits of the loss that are computed at a time (256 MiB in fp32); larger batches are computed in chunks."""

LOSS_LOGITS = 2**18
"""Logits of the loss that are exponentiated at a time (1 MiB in fp32)."""

SEARCH_LOGITS = 2**19
"""Logits of the beam search that are searched at a time (2 MiB in fp32)."""


def set_up_process() -> None:
    """Let the process keep the memory that tensors free."""
    keep_freed_memory()


def graph_recorder(device: torch.device) -> GraphRecorder | None:
    """Return what records CUDA graphs on `device`, or None where there are none."""
    return None


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Compute causal self-attention within each row: (rows, heads, length, head width).

    Torch's fused kernel takes five times as long on a CPU, forward and backward at E2E's lengths.

    Args:
        query: queries: (rows, heads, length, head width).
        key: keys, in the same shape.
        value: values, in the same shape.
        visible: a causal mask, True is visible: (rows, length, length). None shows all tokens up to itself.
        dropout: probability of dropping an attention weight.
    """
    length = query.shape[2]
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if visible is None else ~visible[:, None]
    bias = torch.zeros(hidden.shape, dtype=scores.dtype).masked_fill_(hidden, -torch.inf)
    weights = (scores + bias).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ value


def cached_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Compute the attention of new tokens to the entries of a KV cache: (prompts, heads, new, head width).

    Torch's fused kernel takes up to twice as long with ten queries. The keys are made contiguous before the product;
    oneDNN would otherwise copy them itself, after the transposition.

    Args:
        query: queries of the new tokens: (prompts, heads, new, head width).
        keys: keys of the cache: (prompts, heads, entries, head width).
        values: values of the cache, in the same shape.
        mask: 0 or -inf, added to the scores: (prompts, 1, new, entries).
    """
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ keys.contiguous().transpose(2, 3)
    return scores.add_(mask).softmax(-1) @ values


def exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits (labels, vocabulary) by a multiple of their softmax, in place.

    A few rows at a time, as allocating an fp32 buffer for all of them takes longer than computing them.

    Returns:
        The logarithm of the sum of the exponentials of each row's logits, and the sum of the row afterwards: both
        (labels, 1) fp32.
    """
    if not len(logits):
        return (empty := logits.new_empty(0, 1, dtype=torch.float32)), empty
    normalisers, totals = [], []
    for part in torch.split(logits, max(1, LOSS_LOGITS // logits.shape[1])):
        powers = part.float()
        maximum = powers.amax(-1, keepdim=True)
        total = powers.sub_(maximum).exp_().sum(-1, keepdim=True)
        part.copy_(powers)
        normalisers.append(maximum + total.log())
        totals.append(total)
        del powers  # before the next one is allocated
    return torch.cat(normalisers), torch.cat(totals)


def top_tokens(logits: Tensor, vocabulary: int, tokens: Tensor, banned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` most likely tokens of each row that are not banned, a few rows at a time.

    Args:
        logits: logits of the next token, which may be overwritten: (rows, columns).
        vocabulary: vocabulary size; further columns are padding.
        tokens: tokens that may be banned, each any number of times: (rows, n).
        banned: whether they are: (rows, n).
        k: tokens to find per row, at most the vocabulary size.

    Returns:
        Log-probabilities (fp32) and token ids, best first: both (rows, k).
    """
    rows, values, found = max(1, SEARCH_LOGITS // vocabulary), ban_values(banned), []
    buffers = logits.new_full((2, min(rows, len(logits)), whole_blocks(vocabulary)), -torch.inf, dtype=torch.float32)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        shifted, powers = buffers[:, : len(logits[part])]
        shifted[:, :vocabulary] = logits[part, :vocabulary]
        shifted -= shifted.amax(-1, keepdim=True)
        normaliser = torch.exp(shifted, out=powers).sum(-1, keepdim=True).log_()
        # A token may occur several times and be banned only at some of them, so take the minimum.
        shifted.scatter_reduce_(-1, tokens[part], values[part], "amin")
        best, ids = top_of_blocks(shifted, k)
        found.append((best - normaliser, ids.clamp_(max=vocabulary - 1)))
    return torch.cat([best for best, _ in found]), torch.cat([ids for _, ids in found])
