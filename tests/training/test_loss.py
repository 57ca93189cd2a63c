"""The smoothed cross-entropy and its gradient compared with torch's, on hidden states alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_dist.data.collate import IGNORE
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.common import PlainProjection
from lora_dist.model.kernels.select import Kernels
from lora_dist.training.loss import LossHead

WIDTH, VOCABULARY, LABELS = 16, 50, 23
BOTH = pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])


def loss_head(weight: nn.Parameter, label_smoothing: float, kernels: Kernels = cpu) -> Callable[..., Any]:
    return partial(LossHead(weight, PlainProjection(weight), kernels), label_smoothing=label_smoothing)


def data(seed: int = 0) -> tuple[nn.Parameter, Tensor, Tensor]:
    """A frozen projection, hidden states and labels, with logits of a few units."""
    torch.manual_seed(seed)
    weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.5 + 0.1, requires_grad=False)
    return weight, torch.randn(LABELS, WIDTH, requires_grad=True), torch.randint(VOCABULARY, (LABELS,))


def expected(weight: Tensor, hidden: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), labels, label_smoothing=label_smoothing, reduction="sum")


@BOTH
@pytest.mark.parametrize("max_logits", [2**26, 7 * VOCABULARY, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_loss_sums_and_gradient_equal_torchs_cross_entropy_in_chunks_or_whole(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, max_logits: int, kernels: Kernels
) -> None:
    monkeypatch.setattr(kernels, "MAX_LOGITS", max_logits)
    weight, hidden, labels = data()
    found, sums = loss_head(weight, smoothing, kernels)(hidden, labels, 1 / 7)
    theirs = expected(weight, hidden, labels, smoothing)
    plain = expected(weight, hidden, labels, 0.0)
    torch.testing.assert_close(sums, torch.stack([theirs, plain]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, theirs / 7, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found, hidden)
    (their_gradient,) = torch.autograd.grad(theirs / 7, hidden)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-5)


@BOTH
def test_slots_without_a_label_and_rows_beyond_the_slots_change_nothing_to_the_bit(kernels: Kernels) -> None:
    weight, hidden, labels = data()
    head = loss_head(weight, 0.1, kernels)
    found, sums = head(hidden[:9], labels[:9], 0.5)
    (gradient,) = torch.autograd.grad(found, hidden)
    with_empty_slots = torch.cat([labels[:9], torch.full((5,), IGNORE)])
    with torch.no_grad():
        hidden[9:] *= 1e3
    padded, padded_sums = head(hidden, with_empty_slots, 0.5)
    assert torch.equal(padded_sums, sums)
    assert torch.equal(padded, found)
    (padded_gradient,) = torch.autograd.grad(padded, hidden)
    assert gradient[:9].any(1).all()
    assert not gradient[9:].any()
    assert torch.equal(padded_gradient, gradient)


def test_the_sums_are_the_same_without_a_gradient() -> None:
    weight, hidden, labels = data()
    head = loss_head(weight, 0.1)
    with torch.no_grad():
        evaluated = head(hidden, labels, 1.0)
    for ours, theirs in zip(evaluated, head(hidden, labels, 1.0), strict=True):
        assert torch.equal(ours, theirs)


@BOTH
@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_do_not_overflow(shift: float, kernels: Kernels) -> None:
    weight, hidden, labels = data()
    weight[:, 0] = shift
    with torch.no_grad():
        hidden[:, 0] = 1.0
    found, sums = loss_head(weight, 0.1, kernels)(hidden, labels, 1.0)
    (gradient,) = torch.autograd.grad(found, hidden)
    assert sums.isfinite().all()
    assert gradient.isfinite().all()


@BOTH
@pytest.mark.parametrize("slots", [0, 4])
def test_no_labels_give_zero_loss_and_zero_gradient(slots: int, kernels: Kernels) -> None:
    weight, hidden, _ = data()
    found, sums = loss_head(weight, 0.1, kernels)(hidden, torch.full((slots,), IGNORE), 1.0)
    (gradient,) = torch.autograd.grad(found, hidden)
    assert [found.item(), *sums.tolist()] == [0.0, 0.0, 0.0]
    assert not gradient.any()


def low(weight: nn.Parameter, hidden: Tensor) -> tuple[nn.Parameter, Tensor]:
    return nn.Parameter(weight.bfloat16(), requires_grad=False), hidden.detach().bfloat16().requires_grad_()


@BOTH
def test_bf16_is_close_to_fp32_and_its_loss_and_sums_are_fp32(kernels: Kernels) -> None:
    weight, hidden, labels = data()
    low_weight, low_hidden = low(weight, hidden)
    found, sums = loss_head(low_weight, 0.1, kernels)(low_hidden, labels, 1.0)
    theirs = expected(low_weight.float(), low_hidden.float(), labels, 0.1)
    assert found.dtype == sums.dtype == torch.float32
    assert found.item() == sums[0].item() == pytest.approx(theirs.item(), rel=5e-3)
    (gradient,) = torch.autograd.grad(found, low_hidden)
    (their_gradient,) = torch.autograd.grad(theirs, low_hidden)
    assert (gradient - their_gradient).norm() < 0.02 * their_gradient.norm()


class LowProjection(PlainProjection):
    """A bf16 projection of fp32 hidden states, whose gradient is then not rounded."""

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        return super().logits(hidden.bfloat16(), out)


@BOTH
@pytest.mark.parametrize("scale", [1.0, 1 / 3, 2 / 7, 5 / 11, 1e-4])
def test_the_bf16_gradient_is_the_fp32_one_scaled_and_then_rounded_once(scale: float, kernels: Kernels) -> None:
    """A factor such as world / labels has no bf16 value: rounding it would change the gradient by up to 0.4 %."""
    weight, hidden, labels = data()
    low_weight, low_hidden = low(weight, hidden)
    states = low_hidden.detach().float().requires_grad_()
    whole, _ = LossHead(low_weight, LowProjection(low_weight), kernels)(states, labels, 1.0, 0.1)
    (unscaled,) = torch.autograd.grad(whole, states)
    found, _ = loss_head(low_weight, 0.1, kernels)(low_hidden, labels, scale)
    (gradient,) = torch.autograd.grad(found, low_hidden)
    assert torch.equal(gradient, (unscaled * scale).bfloat16())


@BOTH
def test_the_bf16_gradient_of_a_label_is_the_same_in_worlds_of_one_and_two_ranks(kernels: Kernels) -> None:
    """Two ranks scale by twice the factor and average, a power of two that changes no rounding."""
    weight, hidden, labels = data()
    low_weight, low_hidden = low(weight, hidden)
    head = loss_head(low_weight, 0.1, kernels)
    one, two = (
        torch.autograd.grad(head(low_hidden, labels, size / 73)[0], low_hidden)[0].float() / size for size in (1, 2)
    )
    assert torch.equal(one, two)


def test_a_scale_on_the_device_is_that_of_a_number() -> None:
    weight, hidden, labels = data()
    low_weight, low_hidden = low(weight, hidden)
    head = loss_head(low_weight, 0.1)
    number, tensor = (head(low_hidden, labels, scale) for scale in (2 / 73, torch.tensor(2 / 73)))
    gradients = [torch.autograd.grad(found[0], low_hidden)[0] for found in (number, tensor)]
    assert torch.equal(number[0], tensor[0])
    assert torch.equal(number[1], tensor[1])
    assert torch.equal(*gradients)
