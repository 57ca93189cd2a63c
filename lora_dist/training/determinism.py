"""Seeds and deterministic kernels while a training lasts; decoding keeps torch's defaults, also in between."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def reproducible(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed Python, NumPy and torch, and with `deterministic` use CUDA kernels that give the same bits in every run.

    An operation without such a kernel raises an error: if torch only warned, fused attention would use its faster
    kernel, whose gradient differs from run to run in rows of more than 256 tokens. All settings are restored after the
    block.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    cuda = torch.backends.cuda
    with _settings_restored():
        torch.backends.cudnn.benchmark = False
        if deterministic:
            cuda.enable_mem_efficient_sdp(False)  # its backward sums in arbitrary order
            cuda.enable_cudnn_sdp(False)
        torch.use_deterministic_algorithms(deterministic)
        # Else torch fills each new tensor with NaN, one more pass over it; nothing here reads uninitialised memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield


@contextmanager
def default_kernels() -> Iterator[None]:
    """Use torch's default kernels in the block, as a decoding outside of `reproducible` does."""
    with _settings_restored():
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(True)
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        yield


@contextmanager
def _settings_restored() -> Iterator[None]:
    """Restore the settings that choose torch's kernels after the block."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    attention = cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    filling, benchmark = torch.utils.deterministic.fill_uninitialized_memory, cudnn.benchmark  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        cuda.enable_mem_efficient_sdp(attention[0])
        cuda.enable_cudnn_sdp(attention[1])
        cudnn.benchmark = benchmark
