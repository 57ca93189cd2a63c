"""Choose the kernels of a device: the only place that looks at its type."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.common import Projection
from lora_dist.model.kernels.graphs import GraphRecorder


class Kernels(Protocol):
    """The interface of `cpu.py` and `cuda.py`, documented in `cpu.py`."""

    @property
    def SHAPE_STEP(self) -> int:
        """See `cpu.SHAPE_STEP`."""
        ...

    @property
    def STATIC_SHAPES(self) -> int:
        """See `cpu.STATIC_SHAPES`."""
        ...

    @property
    def DEV_BATCH_SIZE(self) -> int:
        """See `cpu.DEV_BATCH_SIZE`."""
        ...

    @property
    def DRAW_AT_ONCE(self) -> bool:
        """See `cpu.DRAW_AT_ONCE`."""
        ...

    @property
    def BATCHED_ADAPTERS(self) -> bool:
        """See `cpu.BATCHED_ADAPTERS`."""
        ...

    @property
    def MAX_LOGITS(self) -> int:
        """See `cpu.MAX_LOGITS`."""
        ...

    @property
    def CHUNK_TOKENS(self) -> int:
        """See `cpu.CHUNK_TOKENS`."""
        ...

    @property
    def STEPS_PER_BLOCK(self) -> int:
        """See `cpu.STEPS_PER_BLOCK`."""
        ...

    @property
    def LEAVE_AT(self) -> float:
        """See `cpu.LEAVE_AT`."""
        ...

    @property
    def CACHE_STEP(self) -> int:
        """See `cpu.CACHE_STEP`."""
        ...

    def set_up_process(self) -> None:
        """See `cpu.set_up_process`."""
        ...

    def graph_recorder(self, device: torch.device) -> GraphRecorder | None:
        """See `cpu.graph_recorder`."""
        ...

    def attention(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
        """See `cpu.attention`."""
        ...

    def cached_attention(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """See `cpu.cached_attention`."""
        ...

    def freeze_layers(self, model: GPT2LMHeadModel, *, differentiable: bool) -> None:
        """See `cpu.freeze_layers`."""
        ...

    def projection(self, weight: Tensor, *, differentiable: bool) -> Projection:
        """See `cpu.projection`."""
        ...

    def drop(self, x: Tensor, drawn: Tensor, limits: int | Tensor) -> tuple[Tensor, Tensor]:
        """See `common.drop`."""
        ...

    def exponentiate(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `cpu.exponentiate`."""
        ...

    def top_tokens(
        self, logits: Tensor, vocabulary: int, tokens: Tensor, banned: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """See `cpu.top_tokens`."""
        ...


def kernels_for(device: torch.device) -> Kernels:
    """Return the kernels for CPUs, or those for GPUs for any other device."""
    return cpu if device.type == "cpu" else cuda
