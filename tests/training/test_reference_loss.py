"""The loss of the whole model compared with transformers', in any batch, shape and order."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import Settings
from lora_dist.data.collate import Batch, collate, padding_batch
from lora_dist.data.shapes import BatchShape, RoundedShapes, Shapes, StaticShapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model import lora
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.select import Kernels
from lora_dist.presets import BASELINE, IMPROVED
from lora_dist.training.loss import ReferenceLoss

BOTH = pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
ROUNDED = RoundedShapes(16)
PRESETS = pytest.mark.parametrize("preset", [BASELINE, IMPROVED], ids=["baseline", "improved"])


def batch_of(
    examples: TokenizedExamples,
    indices: list[int],
    pad_id: int = 0,
    shapes: Shapes = ROUNDED,
    *,
    share_mrs: bool = False,
) -> Batch:
    return collate(examples, np.array(indices, dtype=np.int64), pad_id, shapes, share_mrs=share_mrs)


def test_a_projection_that_would_be_trained_is_refused(gpt2: GPT2LMHeadModel) -> None:
    gpt2.lm_head.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="output projection"):
        ReferenceLoss(gpt2, cpu, 0.1)


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


def make_random(gpt2: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        for parameter in lora.parameters(gpt2).values():
            parameter.normal_(std=0.1)


def loss_and_gradient(module: ReferenceLoss, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the sums and the gradient of the adapter."""
    found, sums = module(batch, 1 / 7)
    return found, sums, torch.autograd.grad(found, module.adapter.values)[0]


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
    lora.inject(gpt2, BASELINE.lora, seed=1)
    found, sums = ReferenceLoss(gpt2, cpu, 0.0)(batch)
    torch.testing.assert_close(sums[0], theirs.expand(2), rtol=1e-5, atol=1e-5)
    assert found == sums[0, 0]


def test_padding_and_the_other_examples_of_a_batch_never_change_the_loss(gpt2: GPT2LMHeadModel) -> None:
    examples = ragged_examples()
    lora.inject(gpt2, BASELINE.lora, seed=1)
    module = ReferenceLoss(gpt2, cpu, 0.1)

    def sums(indices: list[int], pad_id: int) -> Tensor:
        _, found = module(batch_of(examples, indices, pad_id))
        assert isinstance(found, Tensor)
        return found

    separately = torch.stack([sums([index], 0) for index in range(5)]).sum(0)
    for pad_id in (0, 299):
        torch.testing.assert_close(sums([3, 0, 2, 4, 1], pad_id), separately, rtol=1e-5, atol=1e-5)
    assert sums([], 0).tolist() == [[0.0, 0.0]]


@PRESETS
@pytest.mark.parametrize("share_mrs", [False, True], ids=["separate", "behind one MR"])
@pytest.mark.parametrize("partitioned", [False, True], ids=["packed", "partitioned"])
@BOTH
def test_loss_and_gradients_are_those_of_a_plain_implementation(
    gpt2: GPT2LMHeadModel, preset: Settings, share_mrs: bool, partitioned: bool, kernels: Kernels
) -> None:
    """The same from transformers' padded forward pass, all logits, and torch's cross-entropy, in fp64."""
    lora.inject(gpt2, replace(preset.lora, dropout=0.0), seed=1)
    make_random(gpt2)
    examples = examples_of([5] * 3 + [1] * 2 + [12] + [3] * 2, [4, 9, 1, 3, 6, 5, 2, 8], [0, 0, 0, 1, 1, 2, 3, 3])
    ids, mask, labels = padded(examples)
    exact = copy.deepcopy(gpt2).double()
    logits = exact(input_ids=ids, attention_mask=mask).logits[:, :-1]
    plain = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1, reduction="sum")
    exact_gradients = torch.autograd.grad(plain, list(lora.parameters(exact).values()))

    batch = batch_of(examples, list(range(8)), share_mrs=share_mrs)
    assert batch.shape.rows == (4 if share_mrs else 8)
    module = ReferenceLoss(gpt2, kernels, 0.1, partitioned=partitioned)
    found, sums = module(batch)
    torch.testing.assert_close(sums[0, 0].double(), plain, rtol=1e-6, atol=0)
    (flat,) = torch.autograd.grad(found, module.adapter.values)
    for ours, exact_gradient in zip(module.adapter.split(flat).values(), exact_gradients, strict=True):
        assert (ours - exact_gradient).norm() <= 2e-6 * exact_gradient.norm()


@pytest.mark.parametrize("larger", [(0, 0, 0, 0), (1, 1, 0, 1), (0, 0, 17, 0), (40, 3, 9, 21)], ids=str)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@PRESETS
@BOTH
def test_a_larger_static_shape_changes_neither_loss_nor_gradient(
    gpt2: GPT2LMHeadModel,
    preset: Settings,
    precision: torch.dtype,
    larger: tuple[int, int, int, int],
    kernels: Kernels,
) -> None:
    """Products of other sizes may round in another order, so it is not to the bit."""
    lora.inject(gpt2, replace(preset.lora, dropout=0.0), seed=1)
    make_random(gpt2)
    examples, order = ragged_examples(), [3, 0, 2, 4, 1]
    module = ReferenceLoss(gpt2.to(precision), kernels, 0.1).train()
    module.adapter.values.data = module.adapter.values.data.float()
    exact = batch_of(examples, order, shapes=RoundedShapes(1))
    own, (tokens, rows, length, slots) = exact.shape, larger
    shape = BatchShape(
        own.tokens + tokens, own.rows + rows, own.length + length, own.outputs + slots, own.labels + slots
    )
    found = loss_and_gradient(module, batch_of(examples, order, 9, StaticShapes((shape,))))
    for ours, theirs in zip(found, loss_and_gradient(module, exact), strict=True):
        assert (ours - theirs).norm() <= (1e-6 if precision == torch.float32 else 1e-2) * theirs.norm()


@PRESETS
@BOTH
def test_what_is_in_the_padding_changes_no_bit(gpt2: GPT2LMHeadModel, preset: Settings, kernels: Kernels) -> None:
    lora.inject(gpt2, replace(preset.lora, dropout=0.0), seed=1)
    make_random(gpt2)
    module = ReferenceLoss(gpt2, kernels, 0.1).train()
    shapes = StaticShapes((BatchShape(tokens=90, rows=7, length=32, outputs=48, labels=48),))
    zero, last = (
        loss_and_gradient(module, batch_of(ragged_examples(), [3, 0, 2, 4, 1], pad, shapes)) for pad in (0, 299)
    )
    assert zero[2].any()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(zero, last, strict=True))


@BOTH
def test_a_batch_without_examples_has_no_loss_and_no_gradient(gpt2: GPT2LMHeadModel, kernels: Kernels) -> None:
    lora.inject(gpt2, IMPROVED.lora, seed=1)
    make_random(gpt2)
    module = ReferenceLoss(gpt2, kernels, 0.1).train()
    shape = BatchShape(tokens=30, rows=3, length=16, outputs=16, labels=16)
    for found in loss_and_gradient(module, padding_batch(ragged_examples(), 0, shape)):
        assert not found.any()
