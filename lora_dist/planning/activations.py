"""Bytes of the activations and logits of a micro-batch, by following our forward pass as autograd does."""

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from lora_dist.config import Precision
from lora_dist.data.shapes import BatchShape
from lora_dist.model.kernels.select import kernels_for
from lora_dist.model.lora import LoraConv1D, trainable_count
from lora_dist.planning.memory import BYTES, Kind


def logits_bytes(shape: BatchShape, vocabulary: int, precision: Precision, kind: Kind) -> int:
    """Compute the bytes of the logits (outputs, vocabulary) in `loss.LossHead`, where no other buffer is as large."""
    rows = max(1, kernels_for(torch.device(kind)).MAX_LOGITS // vocabulary)
    return min(shape.outputs, rows) * BYTES[precision] * vocabulary


def saved_bytes(model: GPT2LMHeadModel, shape: BatchShape, precision: Precision, kind: Kind) -> int:
    """Compute the bytes that autograd keeps for backward of a forward pass of `loss.ReferenceLoss`.

    Nothing is kept before the first adapter, as no gradient flows further down. A frozen layer does not keep its input.
    An adapter keeps its input after dropout and, if the gradient flows on, the mask; on a GPU it keeps 16-bit integers
    instead, in any case, as they are drawn for all layers at once. The adapter is kept as a copy in the precision of
    the activations.

    Args:
        model: GPT-2 with an adapter; only its shapes matter.
        shape: shape of the micro-batch.
        precision: precision of the activations.
        kind: kind of device, as CPUs and GPUs have different attention kernels.
    """
    config, body = model.config, model.transformer
    width: int = config.n_embd
    rows = shape.tokens
    elements = trainable_count(model)
    flows = False  # whether the gradient flows down to this point of the residual stream
    for number, block in enumerate(body.h):
        elements += flows * _norm(rows, width)
        kept, attended = _layer(block.attn.c_attn, rows, flows, precision, kind)
        elements += kept + attended * _attention(model, shape, precision, kind)
        if number == len(body.h) - 1:
            rows = shape.outputs
        kept, attended = _layer(block.attn.c_proj, rows, attended, precision, kind)
        elements += kept + attended * _mask(block.attn.resid_dropout, rows * width)
        flows = flows or attended
        elements += flows * _norm(rows, width)
        kept, activated = _layer(block.mlp.c_fc, rows, flows, precision, kind)
        elements += kept + activated * rows * (config.n_inner or 4 * width)
        kept, activated = _layer(block.mlp.c_proj, rows, activated, precision, kind)
        elements += kept + activated * _mask(block.mlp.dropout, rows * width)
        flows = flows or activated
    elements += _norm(rows, width)  # the final norm
    elements += rows * width  # the gradient of the head's input, which the head computes at once
    return elements * BYTES[precision]


def _norm(rows: int, width: int) -> int:
    """Count the elements that a layer norm keeps: input, mean and scale of each row."""
    return rows * (width + 2)


def _mask(dropout: nn.Dropout, elements: int) -> int:
    return elements if dropout.p > 0 else 0


def _layer(layer: nn.Module, rows: int, flows: bool, precision: Precision, kind: Kind) -> tuple[int, bool]:
    """Count the elements that a layer keeps, and return whether the gradient flows through its output."""
    if not isinstance(layer, LoraConv1D):
        return 0, flows
    rank, (inputs, outputs) = layer.lora_A.shape[0], layer.weight().shape
    integers = rows * inputs * 2 // BYTES[precision]
    mask = 0 if layer.dropout == 0 else integers if kind == "cuda" else flows * rows * inputs
    joined = outputs * rank if layer.parts else 0  # the B of all pairs with its zeros
    scaled = 2 * rows * outputs if layer.dora else 0  # what DoRA's factors scale
    return mask + rows * (inputs + rank) + joined + scaled, True


def _attention(model: GPT2LMHeadModel, shape: BatchShape, precision: Precision, kind: Kind) -> int:
    """Count what attention keeps: queries, keys, values and weights; a GPU's fused kernel keeps its result instead."""
    places, heads = shape.rows * shape.length, int(model.config.n_head)
    values = places * int(model.config.n_embd)
    if kind == "cuda" and precision == "bf16":
        return 4 * values + 2 * places * heads
    weights = places * shape.length * heads
    dropped = 2 * weights if model.config.attn_pdrop > 0 else 0  # the mask, and the product with it
    return 3 * values + weights + dropped
