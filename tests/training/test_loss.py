import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from lora_dist.config import BASELINE, IMPROVED, Settings
from lora_dist.data.collate import Batch, collate
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model import lora
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.common import PlainProjection
from lora_dist.model.kernels.select import Kernels
from lora_dist.training import loss
from lora_dist.training.loss import LossHead, ReferenceLoss

WIDTH, VOCABULARY, LABELS = 16, 50, 23
BOTH = pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])


def loss_head(weight: nn.Parameter, label_smoothing: float, kernels: Kernels = cpu) -> LossHead:
    return LossHead(weight, PlainProjection(weight), label_smoothing, kernels)


def batch_of(examples: TokenizedExamples, indices: list[int], pad_id: int = 0, *, share_mrs: bool = False) -> Batch:
    return collate(examples, np.array(indices, dtype=np.int64), pad_id, cpu.SHAPE_STEP, share_mrs=share_mrs)


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
def test_sums_and_gradient_equal_torchs_cross_entropy_in_chunks_or_whole(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, max_logits: int, kernels: Kernels
) -> None:
    monkeypatch.setattr(loss, "MAX_LOGITS", max_logits)
    weight, hidden, labels = data()
    sums = loss_head(weight, smoothing, kernels)(hidden, labels)
    theirs = expected(weight, hidden, labels, smoothing)
    plain = expected(weight, hidden, labels, 0.0)
    torch.testing.assert_close(sums, torch.stack([theirs, plain]), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(sums[0] / 7, hidden)
    (their_gradient,) = torch.autograd.grad(theirs / 7, hidden)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-5)


def test_rows_beyond_the_labels_change_no_sum_and_get_no_gradient() -> None:
    weight, hidden, labels = data()
    head = loss_head(weight, 0.1)
    sums = head(hidden, labels[:9])
    torch.testing.assert_close(sums, head(hidden[:9], labels[:9]))
    (gradient,) = torch.autograd.grad(sums[0], hidden)
    assert gradient[:9].any(1).all()
    assert not gradient[9:].any()


def test_the_sums_are_the_same_without_a_gradient() -> None:
    weight, hidden, labels = data()
    head = loss_head(weight, 0.1)
    with torch.no_grad():
        evaluated = head(hidden, labels)
    assert torch.equal(evaluated, head(hidden, labels))


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_do_not_overflow(shift: float) -> None:
    weight, hidden, labels = data()
    weight[:, 0] = shift
    with torch.no_grad():
        hidden[:, 0] = 1.0
    sums = loss_head(weight, 0.1)(hidden, labels)
    (gradient,) = torch.autograd.grad(sums[0], hidden)
    assert sums.isfinite().all()
    assert gradient.isfinite().all()


def test_no_labels_give_zero_loss_and_zero_gradient() -> None:
    weight, hidden, labels = data()
    sums = loss_head(weight, 0.1)(hidden[:0], labels[:0])
    sums[0].backward()
    assert sums.tolist() == [0.0, 0.0]
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_bf16_is_close_to_fp32_and_its_sums_are_fp32() -> None:
    weight, hidden, labels = data()
    low_weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    low_hidden = hidden.detach().bfloat16().requires_grad_()
    sums = loss_head(low_weight, 0.1)(low_hidden, labels)
    theirs = expected(low_weight.float(), low_hidden.float(), labels, 0.1)
    assert sums.dtype == torch.float32
    assert sums[0].item() == pytest.approx(theirs.item(), rel=5e-3)
    (gradient,) = torch.autograd.grad(sums[0], low_hidden)
    (their_gradient,) = torch.autograd.grad(theirs, low_hidden)
    assert (gradient - their_gradient).norm() < 0.02 * their_gradient.norm()


@BOTH
@pytest.mark.parametrize("scale", [1 / 3, 2 / 7, 5 / 11, 1e-4])
def test_the_bf16_gradient_is_the_fp32_one_scaled_and_then_rounded_once(scale: float, kernels: Kernels) -> None:
    """A factor such as world / labels has no bf16 value: rounding it would change the gradient by up to 0.4 %."""
    weight, hidden, labels = data()
    low_weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    low_hidden = hidden.detach().bfloat16().requires_grad_()
    sums = loss_head(low_weight, 0.1, kernels)(low_hidden, labels)
    (in_fp32,) = sums.grad_fn.saved_tensors
    (whole,) = torch.autograd.grad(sums[0], low_hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(sums[0] * scale, low_hidden)
    assert in_fp32.dtype == torch.float32
    assert torch.equal(scaled, (in_fp32 * scale).bfloat16())
    factor = (scaled.float() * whole.float()).sum() / whole.float().square().sum()
    assert factor.item() == pytest.approx(scale, rel=3e-4)


def test_a_projection_that_would_be_trained_is_refused(gpt2: GPT2LMHeadModel) -> None:
    gpt2.lm_head.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="output projection"):
        ReferenceLoss(gpt2, cpu, 0.1)


# The whole model


def ragged_examples() -> TokenizedExamples:
    """Five examples of different lengths, with ids that the tiny model knows."""
    return examples_of([5, 1, 12, 1, 3], [4, 3, 5, 1, 9], mrs=[0, 1, 2, 3, 4])


def examples_of(prompt_lengths: list[int], label_counts: list[int], mrs: list[int]) -> TokenizedExamples:
    """Random tokens; examples of one MR have the same prompt."""
    draw = np.random.default_rng(0)
    prompts = {mr: draw.integers(1, 300, length) for mr, length in zip(mrs, prompt_lengths, strict=True)}
    rows = [np.append(prompts[mr], draw.integers(1, 300, n)) for mr, n in zip(mrs, label_counts, strict=True)]
    starts = np.cumsum([0, *map(len, rows)])
    return TokenizedExamples(
        np.concatenate(rows).astype(np.int32), starts, np.array([len(prompts[mr]) for mr in mrs]), np.array(mrs)
    )


def padded(examples: TokenizedExamples) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels (rows, length) as transformers takes them."""
    rows = [examples.ids[a:b].tolist() for a, b in zip(examples.starts[:-1], examples.starts[1:], strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, prompt in zip(labels, examples.prompt_lengths, strict=True):
        row[:prompt] = -100
    return ids, mask, labels


def test_the_models_loss_is_transformers_mean_loss_times_the_labels(gpt2: GPT2LMHeadModel) -> None:
    examples = ragged_examples()
    ids, mask, labels = padded(examples)
    theirs = gpt2(input_ids=ids, attention_mask=mask, labels=labels).loss * int((labels != -100).sum())

    batch = batch_of(examples, [0, 1, 2, 3, 4])
    sums = ReferenceLoss(gpt2.requires_grad_(False), cpu, 0.0)(**batch.named())
    torch.testing.assert_close(sums, theirs.expand(2), rtol=1e-5, atol=1e-5)


def test_padding_and_the_other_examples_of_a_batch_never_change_the_loss(gpt2: GPT2LMHeadModel) -> None:
    examples = ragged_examples()
    module = ReferenceLoss(gpt2.requires_grad_(False), cpu, 0.1)

    def sums(indices: list[int], pad_id: int) -> Tensor:
        found: Tensor = module(**batch_of(examples, indices, pad_id).named())
        return found

    separately = torch.stack([sums([index], 0) for index in range(5)]).sum(0)
    for pad_id in (0, 299):
        torch.testing.assert_close(sums([3, 0, 2, 4, 1], pad_id), separately, rtol=1e-5, atol=1e-5)
    assert sums([], 0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("preset", [BASELINE, IMPROVED], ids=["baseline", "improved"])
@pytest.mark.parametrize("share_mrs", [False, True], ids=["separate", "behind one MR"])
@pytest.mark.parametrize("partitioned", [False, True], ids=["packed", "partitioned"])
@BOTH
def test_loss_and_gradients_are_those_of_a_plain_implementation(
    gpt2: GPT2LMHeadModel, preset: Settings, share_mrs: bool, partitioned: bool, kernels: Kernels
) -> None:
    """The same from transformers' padded forward pass, all logits, and torch's cross-entropy, in fp64."""
    lora.inject(gpt2, replace(preset.lora, dropout=0.0), seed=1)
    adapter = list(lora.parameters(gpt2).values())
    with torch.no_grad():
        for parameter in adapter:
            parameter.normal_(std=0.1)
    examples = examples_of([5] * 3 + [1] * 2 + [12] + [3] * 2, [4, 9, 1, 3, 6, 5, 2, 8], [0, 0, 0, 1, 1, 2, 3, 3])
    ids, mask, labels = padded(examples)
    exact = copy.deepcopy(gpt2).double()
    logits = exact(input_ids=ids, attention_mask=mask).logits[:, :-1]
    plain = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1, reduction="sum")
    exact_gradients = torch.autograd.grad(plain, list(lora.parameters(exact).values()))

    batch = batch_of(examples, list(range(8)), share_mrs=share_mrs)
    assert batch.rows == (4 if share_mrs else 8)
    sums = ReferenceLoss(gpt2, kernels, 0.1, partitioned=partitioned)(**batch.named())
    torch.testing.assert_close(sums[0].double(), plain, rtol=1e-6, atol=0)
    for found, expected_gradient in zip(torch.autograd.grad(sums[0], adapter), exact_gradients, strict=True):
        assert (found - expected_gradient).norm() <= 2e-6 * expected_gradient.norm()
