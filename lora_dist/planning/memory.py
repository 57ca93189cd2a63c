"""How much memory a process of a training needs at its peak, and what it sends, worked out from shapes alone.

The tensors are exact: weights, adapter, gradients and moments by count, activations by walking through our forward
pass as autograd does (tests count what it really saves). On a CPU the process counts as well, as the system sees it:
libraries, tokenizer, corpus, kernels made for each shape of a matrix product, and heap that fragments. These are
constants measured with GPT-2 Small on Linux and glibc. So on a CPU it is the sum that holds within 15 %, not each part
of it (tests compare it with the peaks of trainings); on a GPU, where CUDA's own context and the reserve of torch's
allocator come on top, the sum is a lower bound.
"""

from dataclasses import dataclass, fields
from typing import Literal

from torch import nn
from transformers import GPT2LMHeadModel

from lora_dist.config import Precision
from lora_dist.data.collate import BatchShape
from lora_dist.distributed import launcher
from lora_dist.model.lora import LoraConv1D
from lora_dist.training.loss import MAX_LOGITS

Strategy = Literal["single"] | launcher.Strategy
Kind = Literal["cpu", "cuda"]

MIB = 2**20
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}
"""Bytes of a number."""

LIBRARIES = 350 * MIB
"""torch, transformers, accelerate and DeepSpeed once imported: 338 alone, 360 under the launcher."""
TOKENIZER_BYTES_A_WORD = 1000
"""GPT-2's fast tokenizer with its merges."""
CORPUS_BYTES_A_TOKEN = 64
"""What reading and tokenising leave of the heap, most of it free but scattered: nothing else fits in there."""
KERNELS: dict[Precision, int] = {"fp32": 20 * MIB, "bf16": 90 * MIB}
"""Matrix products prepared by MKL and oneDNN for each shape they met."""
WORKSPACES = 64 * MIB
"""What cuBLAS and cuBLASLt hold on a GPU, 32 MiB each on Hopper: an H100 held 70 to 100 MiB beyond the tensors."""
HOLES = 0.5
"""Heap that lies idle between tensors of unlike size, a part of what tensors come and go in (0.3 after four updates,
0.4 to 0.7 after forty): `device.keep_freed_memory` gives none of it back."""
COPIES = 0.5
"""Heap left of the copies in which weights travel, a part of their size: with DDP once at the start, with ZeRO-3 in
each forward pass."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process of a training holds and computes."""

    processes: int
    kind: Kind
    precision: Precision
    """Of the frozen weights and the activations."""
    file_precision: Precision
    """Of the checkpoint of the base model."""
    frozen: int
    """Frozen numbers, the reference token's row among them."""
    trained: int
    """Trained numbers."""
    layers: int
    """Numbers of the layers' matrices, part of `frozen`."""
    projection: int
    """Numbers of the output projection, which is the embedding."""
    vocabulary: int
    """Words of the tokenizer."""
    corpus_tokens: int
    """Tokens of the training and the dev set."""
    activations: int
    """Bytes that the largest micro-batch keeps for backward."""
    logits: int
    """Bytes of its logits, which come on top at the end of the forward pass."""
    dev_logits: int
    """Bytes of the logits of the dev set's largest batch, which has no activations beside it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process at its peak, part by part."""

    weights: int
    """Frozen weights; on a CPU each matrix packed for both directions (see `packed.py`); under ZeRO-3
    this process' part and the whole that it gathers for the forward pass."""
    gathering: int
    """ZeRO-3: the buffers through which it gathers, as far as they exceed what activations need later on."""
    adapter: int
    """Trained numbers in fp32, under ZeRO also the part that this process updates."""
    gradients: int
    """Their gradients in fp32, and the buckets in which they travel."""
    moments: int
    """AdamW's two moments in fp32, under ZeRO this process' part of them."""
    activations: int
    """See `Job`."""
    logits: int
    """See `Job`."""
    dev: int
    """What the logits of the dev set need beyond activations and logits of the training."""
    process: int
    """On a CPU: libraries, tokenizer, corpus, kernels. On a GPU: cuBLAS's workspaces."""
    unused: int
    """On a CPU: holes of the heap, and pages of the checkpoint that are of no more use."""
    loading: int
    """On a CPU: what the start needs beyond all that, when the checkpoint is converted to another precision."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, part.name) for part in fields(self))


def memory(strategy: Strategy, job: Job) -> Memory:
    """What a process needs under `strategy`.

    What DeepSpeed holds is read off its stage_1_and_2.py and stage3.py with the buckets of `replica.py`: ZeRO-1 and -2
    keep the adapter whole and a copy of their part; ZeRO-3 frees no weight that is used again within a thousand
    million numbers, so of a GPT-2 it holds everything from the first use to the last.
    """
    on_cpu, sharded = job.kind == "cpu", strategy.startswith("zero3")
    on_host = strategy == "zero3_offload" and not on_cpu  # then this process' parts are not on the device
    whole, adapter = job.frozen * BYTES[job.precision], job.trained * 4
    part = -(-job.trained // job.processes) * 4 if strategy.startswith("zero") else 0
    parts = 0 if on_host else 2 if strategy == "zero3_offload" else 1
    gathered = whole if sharded else 0
    temporary = job.activations + job.logits
    packs = on_cpu and not sharded
    layers = job.layers * BYTES[job.precision] if packs else 0
    copies = layers + 2 * job.projection * BYTES[job.precision] if packs else 0
    tensors = {
        "weights": whole + copies + (0 if on_host else -(-gathered // job.processes)),
        "gathering": gathered if on_cpu else max(0, gathered - temporary),
        "adapter": adapter + parts * part,
        "gradients": adapter * (2 if strategy in ("ddp", "zero1") else 1) + part * (2 if strategy == "zero2" else 1),
        "moments": 0 if on_host else 2 * (part or adapter),
        "activations": job.activations,
        "logits": job.logits,
        "dev": max(0, job.dev_logits - temporary),
    }
    if not on_cpu:
        return Memory(**tensors, process=WORKSPACES, unused=0, loading=0)
    start = LIBRARIES + job.vocabulary * TOKENIZER_BYTES_A_WORD
    process = start + job.corpus_tokens * CORPUS_BYTES_A_TOKEN + KERNELS[job.precision]
    unused = int(HOLES * (temporary + 2 * gathered)) + int(
        COPIES * (whole - layers) if sharded or strategy == "ddp" else 0
    )
    mapped = job.precision == job.file_precision  # then the weights are pages of the file at first
    converting = start + whole + (0 if mapped else job.frozen * BYTES[job.file_precision])
    if packs:  # the layers twice beside what was loaded, and then a copy of the rest
        converting = max(converting, start + 2 * whole + layers)
    loading = max(0, converting - sum(tensors.values()) - process - unused)
    return Memory(**tensors, process=process, unused=unused, loading=loading)


def bytes_sent(strategy: Strategy, job: Job, accumulation_steps: int) -> int:
    """Bytes a process sends for one update, with rings.

    Of P processes, each sends (P - 1) / P of the data to gather it or to reduce it into parts, and twice that to
    reduce it to a whole (Rajbhandari et al. 2020, "ZeRO", section 7). DeepSpeed's ZeRO-1 and -2 reduce the gradient to
    a whole all the same and then gather the updated adapter, which makes three. ZeRO-3 reduces it into parts, gathers
    the adapter, and the frozen weights in each forward pass; the paper's second gathering, for backward, falls away as
    nothing is freed in between (see `memory`).
    """
    gradient, frozen = job.trained * 4, job.frozen * BYTES[job.precision]
    volumes = {
        "single": 0,
        "ddp": 2 * gradient,
        "zero1": 3 * gradient,
        "zero2": (2 * accumulation_steps + 1) * gradient,
    }
    volume = volumes.get(strategy, accumulation_steps * (gradient + frozen) + gradient)
    return volume * (job.processes - 1) // job.processes


def logits_bytes(shape: BatchShape, vocabulary: int, precision: Precision, kind: Kind) -> int:
    """Bytes of the buffers of (labels, vocabulary) in `loss.LossHead`."""
    at_once = max(1, MAX_LOGITS // vocabulary)
    as_fp32 = min(shape.labels, at_once) * 4 if kind == "cuda" and precision != "fp32" else 0
    return (min(shape.wanted, at_once) * BYTES[precision] + as_fp32) * vocabulary


def saved_bytes(model: GPT2LMHeadModel, shape: BatchShape, precision: Precision, kind: Kind) -> int:
    """Bytes that autograd keeps for backward of a forward pass of `loss.ReferenceLoss`.

    Nothing is kept before the first adapter, as no gradient goes further down. A frozen layer keeps nothing of its
    input, an adapter its input after dropout and, if the gradient goes on, the mask.

    Args:
        model: with the adapters in it; its shapes are looked at, not its numbers.
        shape: of the micro-batch.
        precision: of the activations.
        kind: of device; a CPU and a GPU have other kernels of attention.
    """
    config, body = model.config, model.transformer
    width: int = config.n_embd
    rows = shape.tokens
    indices, numbers = 8 * (2 * shape.tokens + shape.rows * shape.length), 0
    flows = False  # whether the gradient goes down to this point of the residual stream
    for number, block in enumerate(body.h):
        numbers += flows * _norm(rows, width)
        kept, attended = _layer(block.attn.c_attn, rows, flows, precision)
        numbers += kept + attended * _attention(model, shape, precision, kind)
        if number == len(body.h) - 1:
            rows = shape.wanted
        kept, attended = _layer(block.attn.c_proj, rows, attended, precision)
        numbers += kept + attended * _mask(block.attn.resid_dropout, rows * width)
        flows = flows or attended
        numbers += flows * _norm(rows, width)
        kept, activated = _layer(block.mlp.c_fc, rows, flows, precision)
        numbers += kept + activated * rows * (config.n_inner or 4 * width)
        kept, activated = _layer(block.mlp.c_proj, rows, activated, precision)
        numbers += kept + activated * _mask(block.mlp.dropout, rows * width)
        flows = flows or activated
    numbers += _norm(rows, width) + rows * width  # the last of them, and the gradient that the head computes at once
    return indices + numbers * BYTES[precision]


def _norm(rows: int, width: int) -> int:
    """The input, mean and scale of each row."""
    return rows * (width + 2)


def _mask(dropout: nn.Dropout, numbers: int) -> int:
    return numbers if dropout.p > 0 else 0


def _layer(layer: nn.Module, rows: int, flows: bool, precision: Precision) -> tuple[int, bool]:
    """Numbers that a layer keeps, and whether the gradient goes through its result."""
    if not isinstance(layer, LoraConv1D):
        return 0, flows
    rank, (inputs, outputs) = layer.lora_A.shape[0], layer.weight().shape
    mask = rows * inputs if flows and layer.dropout > 0 else 0
    casts = rank * (outputs + flows * inputs) if precision != "fp32" else 0
    return mask + rows * (inputs + rank) + casts, True


def _attention(model: GPT2LMHeadModel, shape: BatchShape, precision: Precision, kind: Kind) -> int:
    """Queries, keys and values; and the weights, or of a GPU's fused kernel the result and two numbers a row."""
    places, heads = shape.rows * shape.length, int(model.config.n_head)
    values = places * int(model.config.n_embd)
    if kind == "cuda" and precision == "bf16":
        return 4 * values + 2 * places * heads
    weights = places * shape.length * heads
    dropped = 2 * weights if model.config.attn_pdrop > 0 else 0  # the mask, and the product with it
    return 3 * values + weights + dropped
