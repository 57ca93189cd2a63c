"""Triton's kernels compared with torch's operators, which compute the same in more passes."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from lora_dist.model.kernels import common, cpu, cuda
from lora_dist.model.kernels.common import whole_blocks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SIZES = [(1, 50), (5, 3000), (3, 8192), (2, 16_400), (630, 50_258)]
"""Rows and columns below, at and beyond what a program holds at a time."""


@pytest.fixture(autouse=True)
def fused() -> ModuleType:
    """Triton's kernels, which must not have been replaced silently."""
    found = cuda._triton()
    assert found is not None, "Triton's kernels cannot be used here"
    return found


def logits(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Logits as GPT-2's, far from zero, in a matrix with whole blocks of columns."""
    torch.manual_seed(rows)
    found = torch.zeros(rows, whole_blocks(columns), dtype=dtype)
    found[:, :columns] = torch.randn(rows, columns) * 3 - 40
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_the_best_tokens_are_those_of_a_cpu(rows: int, columns: int, dtype: torch.dtype) -> None:
    whole = logits(rows, columns, dtype)
    tokens = torch.randint(0, columns, (rows, 7))
    banned = torch.rand(rows, 7) < 0.4
    tokens[:, 0] = tokens[:, 1] = whole[:, :columns].argmax(-1)
    banned[:, 0], banned[:, 1] = True, False  # once banned and once not: banned
    expected, ids = cpu.top_tokens(whole.clone(), columns, tokens, banned, k=20)
    scores, found = cuda.top_tokens(whole.cuda(), columns, tokens.cuda(), banned.cuda(), k=20)
    assert torch.allclose(scores.cpu(), expected, rtol=0, atol=2e-6)
    if dtype == torch.float32:  # bf16 has ties
        assert torch.equal(found.cpu(), ids)
    assert not (found.cpu() == tokens[:, :1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(0, 50), *SIZES])
def test_exponentials_and_their_sums_are_those_of_a_cpu(rows: int, columns: int, dtype: torch.dtype) -> None:
    whole = logits(rows, columns, dtype)
    on_gpu = whole.cuda()
    expected = cpu.exponentiate(whole[:, :columns])
    found = cuda.exponentiate(on_gpu[:, :columns])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.cpu(), theirs, rtol=5e-6)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert torch.allclose(on_gpu.cpu(), whole, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", [1, 3])
@pytest.mark.parametrize("each", [False, True])
def test_dropout_and_its_gradient_are_those_of_torchs_operators(dtype: torch.dtype, adapters: int, each: bool) -> None:
    rows, features = 37, 100
    drawn = torch.randint(-(2**15), 2**15, (adapters, rows * features + 5), dtype=torch.int16, device="cuda")
    own = drawn[:, 3 : 3 + rows * features].view(adapters, rows, features)
    limits = torch.full((adapters, 1, 1), -20_000, dtype=torch.int16, device="cuda") if each else -20_000
    x = torch.randn(adapters * rows, features, device="cuda", dtype=dtype, requires_grad=True)
    ours, theirs = cuda.drop(x, own, limits), common.drop(x, own, limits)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    assert 0 < int((ours[1] == 0).sum()) < x.numel()
    gradients = [torch.randn_like(x), torch.randn_like(x)]
    (of_ours,), (of_theirs,) = (torch.autograd.grad(both, x, gradients) for both in (ours, theirs))
    assert torch.equal(of_ours, of_theirs)
