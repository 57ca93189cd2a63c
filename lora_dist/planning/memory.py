"""Peak memory and communication volume of a process of a training, computed from shapes only.

The tensors are exact: weights, adapter, gradients and optimizer state by their sizes, activations as `activations.py`
computes them (tests compare with what autograd saves). On a CPU, the memory of the process itself is added:
libraries, tokenizer, corpus, kernels compiled for each shape of a matrix product, and heap fragmentation. These are
constants measured with GPT-2 Small on Linux and glibc. So on a CPU the sum is right within 15 %, but not each part
(tests compare with the peaks of trainings). On a GPU the sum is a lower bound, as CUDA's own context and the reserve of
torch's allocator are not included.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from lora_dist.config import Precision
from lora_dist.distributed.launcher import Strategy

Kind = Literal["cpu", "cuda"]

MIB = 2**20
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}
"""Bytes per element."""

LIBRARIES = 350 * MIB
"""torch, transformers, accelerate and DeepSpeed once imported: 338 MiB without the launcher, 360 with it."""
TOKENIZER_BYTES_PER_TOKEN = 1000
"""GPT-2's fast tokenizer with its merges, per token of its vocabulary."""
CORPUS_BYTES_PER_TOKEN = 64
"""Heap that reading and tokenising leave behind, most of it free but too fragmented to be reused."""
KERNELS: dict[Precision, int] = {"fp32": 20 * MIB, "bf16": 90 * MIB}
"""Kernels that MKL and oneDNN compile for the shapes of matrix products."""
WORKSPACES = 64 * MIB
"""Workspaces of cuBLAS and cuBLASLt, 32 MiB each on Hopper: an H100 held 70 to 100 MiB beyond the tensors."""
HOLES = 0.5
"""Free heap between tensors of different sizes, as a fraction of the temporary tensors (0.3 after four steps, 0.4 to
0.7 after forty): `kernels.cpu.set_up_process` keeps all of it."""
COPIES = 0.5
"""Free heap that the copies of communicated weights leave behind, as a fraction of their size: with DDP once at the
start, with ZeRO-3 in each forward pass."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one process of a training stores and computes."""

    processes: int
    kind: Kind
    precision: Precision
    """Precision of the frozen weights and the activations."""
    file_precision: Precision
    """Precision of the base model's checkpoint."""
    frozen: int
    """Frozen parameters, including the reference token's row."""
    trainable: int
    """Trainable parameters."""
    layers: int
    """Frozen parameters of the layers' matrices."""
    projection: int
    """Parameters of the output projection, which is tied to the embedding."""
    vocabulary: int
    """Vocabulary size of the tokenizer."""
    corpus_tokens: int
    """Tokens of the training and the dev set."""
    activations: int
    """Bytes that the largest micro-batch keeps for backward."""
    logits: int
    """Bytes of its logits, which are added at the end of the forward pass."""
    dev_logits: int
    """Bytes of the logits of the dev set's largest batch, which keeps no activations."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process at its peak, part by part."""

    weights: int
    """Frozen weights; on a CPU with each matrix packed for both directions (see `kernels/cpu.py`); under ZeRO-3
    this process' partition and all weights, which it gathers for the forward pass."""
    gathering: int
    """ZeRO-3: the buffers of the all-gather, where they exceed what the activations need later."""
    adapter: int
    """Trainable parameters in fp32, under ZeRO also the partition that this process updates."""
    gradients: int
    """Their gradients in fp32, and the buckets in which they are reduced."""
    graphs: int
    """The gradient as CUDA graphs write it."""
    moments: int
    """AdamW's two moments in fp32, under ZeRO this process' partition of them."""
    activations: int
    """See `Workload`."""
    logits: int
    """See `Workload`."""
    dev: int
    """What the logits of the dev set need beyond activations and logits of the training."""
    process: int
    """On a CPU: libraries, tokenizer, corpus, kernels. On a GPU: cuBLAS's workspaces."""
    unused: int
    """On a CPU: free heap, and pages of the checkpoint that are no longer used."""
    loading: int
    """On a CPU: what loading needs beyond all other parts, when it converts the checkpoint to another precision."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def several(work: Workload, adapters: int) -> Workload:
    """Return the work of as many adapters at the same time: the head computes the logits of one after the other."""
    return replace(work, trainable=adapters * work.trainable, activations=adapters * work.activations)


def memory(strategy: Strategy | None, work: Workload, *, captured: bool) -> Memory:
    """Compute the peak memory of a process.

    What DeepSpeed allocates is read from its stage_1_and_2.py and stage3.py, with the buckets of
    `training/strategy.py`. ZeRO-1 and -2 keep the whole adapter and a copy of their partition. ZeRO-3 frees no weight
    that is used again within 10^9 elements, so it keeps all of a GPT-2 from the first use to the last.

    Args:
        strategy: how to train; None is one process without a launcher.
        work: what the process stores and computes.
        captured: whether its steps are captured as CUDA graphs.
    """
    stage, offload = (0, False) if strategy is None else (strategy.zero_stage, strategy.offload)
    on_cpu, partitioned = work.kind == "cpu", stage == 3
    on_host = offload and not on_cpu  # this process' partitions are not on the device
    whole, adapter = work.frozen * BYTES[work.precision], work.trainable * 4
    partition = -(-work.trainable // work.processes) * 4 if stage else 0
    copies = 0 if on_host else 2 if offload else 1
    gathered = whole if partitioned else 0
    temporary = work.activations + work.logits
    packs = on_cpu and not partitioned
    layers = work.layers * BYTES[work.precision] if packs else 0
    packed = layers + 2 * work.projection * BYTES[work.precision] if packs else 0
    with_bucket = stage == 1 or (strategy is not None and not stage)
    tensors = {
        "weights": whole + packed + (0 if on_host else -(-gathered // work.processes)),
        "gathering": gathered if on_cpu else max(0, gathered - temporary),
        "adapter": adapter + copies * partition,
        "gradients": adapter * (2 if with_bucket else 1) + partition * (2 if stage == 2 else 1),
        "graphs": adapter if captured else 0,
        "moments": 0 if on_host else 2 * (partition or adapter),
        "activations": work.activations,
        "logits": work.logits,
        "dev": max(0, work.dev_logits - temporary),
    }
    if not on_cpu:
        return Memory(**tensors, process=WORKSPACES, unused=0, loading=0)
    start = LIBRARIES + work.vocabulary * TOKENIZER_BYTES_PER_TOKEN
    process = start + work.corpus_tokens * CORPUS_BYTES_PER_TOKEN + KERNELS[work.precision]
    broadcast = partitioned or (strategy is not None and not stage)
    unused = int(HOLES * (temporary + 2 * gathered)) + int(COPIES * (whole - layers) if broadcast else 0)
    mapped = work.precision == work.file_precision  # the weights are pages of the file at first
    converting = start + whole + (0 if mapped else work.frozen * BYTES[work.file_precision])
    if packs:  # the layers twice in addition to what was loaded, and then a copy of the rest
        converting = max(converting, start + 2 * whole + layers)
    loading = max(0, converting - sum(tensors.values()) - process - unused)
    return Memory(**tensors, process=process, unused=unused, loading=loading)


def bytes_sent(strategy: Strategy | None, work: Workload, accumulation_steps: int) -> int:
    """Compute the bytes that a process sends per optimizer step with ring collectives.

    Each of P processes sends (P - 1) / P of the data for an all-gather or a reduce-scatter, and twice that for an
    all-reduce (Rajbhandari et al. 2020, "ZeRO", section 7). DeepSpeed's ZeRO-1 and -2 all-reduce the gradient and then
    all-gather the adapter, three times that in total. ZeRO-3 reduce-scatters the gradient and all-gathers the adapter,
    and the frozen weights in each forward pass. The paper's second all-gather, for backward, is not needed, as nothing
    is freed in between (see `memory`).
    """
    gradient, frozen = work.trainable * 4, work.frozen * BYTES[work.precision]
    if strategy is None:
        return 0
    volumes = {
        0: 2 * gradient,
        1: 3 * gradient,
        2: (2 * accumulation_steps + 1) * gradient,
        3: accumulation_steps * (gradient + frozen) + gradient,
    }
    return volumes[strategy.zero_stage] * (work.processes - 1) // work.processes
