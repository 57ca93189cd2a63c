"""Seeds and deterministic kernels last as long as the block, whatever ends it."""

import random

import numpy as np
import pytest
import torch

from lora_dist.training.determinism import default_kernels, reproducible


def settings() -> tuple[object, ...]:
    """Torch's settings that choose kernels."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_torchs_settings_are_restored_after_the_block_and_after_an_exception(
    deterministic: bool, benchmark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    before = settings()
    with reproducible(1, deterministic=deterministic):
        assert settings() == (deterministic, False, False, not deterministic, not deterministic, False)
    assert settings() == before
    with pytest.raises(FloatingPointError), reproducible(1, deterministic=deterministic):
        raise FloatingPointError
    assert settings() == before


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_decoding_in_between_has_the_settings_of_one_outside(deterministic: bool) -> None:
    before = settings()
    with reproducible(1, deterministic=deterministic):
        training = settings()
        with default_kernels():
            assert settings() == before
        assert settings() == training
    assert settings() == before


def test_settings_that_a_user_made_are_not_lost() -> None:
    before = settings()
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    try:
        own = settings()
        with reproducible(1, deterministic=False):
            assert not torch.are_deterministic_algorithms_enabled()
        assert settings() == own
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
    assert settings() == before


def test_the_seed_determines_what_python_numpy_and_torch_draw() -> None:
    def draws(seed: int) -> tuple[float, ...]:
        with reproducible(seed, deterministic=True):
            return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draws(3) == draws(3)
    assert all(a != b for a, b in zip(draws(3), draws(4), strict=True))
    assert draws(2**40) == draws(2**40)  # NumPy takes 32 bits
