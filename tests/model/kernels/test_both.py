"""`cpu.py` and `cuda.py` compute the same functions, here both on the CPU: the shared code relies on it."""

import inspect
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.common import BLOCK_SIZE, PlainProjection, whole_blocks
from lora_dist.model.kernels.select import Kernels, kernels_for

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BOTH = pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
EVERY_TYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_cpu_has_its_kernels_and_every_other_device_those_of_a_gpu() -> None:
    assert kernels_for(torch.device("cpu")) is cpu
    assert kernels_for(torch.device("cuda:3")) is cuda


@BOTH
def test_both_define_what_the_protocol_declares_with_the_same_arguments(kernels: ModuleType) -> None:
    for name, declared in vars(Kernels).items():
        if inspect.isfunction(declared) and not name.startswith("_"):
            expected = list(inspect.signature(declared).parameters)[1:]
            assert list(inspect.signature(getattr(kernels, name)).parameters) == expected, name
        elif isinstance(declared, property):
            assert hasattr(kernels, name)


# Attention


def some_visible(rows: int, length: int) -> Tensor:
    """Random tokens before each one, and the token itself: (rows, length, length)."""
    return ((torch.rand(rows, length, length) < 0.5) | torch.eye(length, dtype=torch.bool)).tril()


@EVERY_TYPE
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_are_the_same(masked: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 4, 11, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    visible, pull = some_visible(3, 11) if masked else None, torch.randn(3, 4, 11, 8, dtype=dtype)
    found = []
    for kernels in (cpu, cuda):
        out = kernels.attention(*inputs, visible, 0.0)
        found.append((out, *torch.autograd.grad(out, inputs, pull)))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, dtype)


@BOTH
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_formula(masked: bool, kernels: Kernels) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 11, 8)
    visible = some_visible(2, 11) if masked else torch.ones(2, 11, 11, dtype=torch.bool).tril()
    scores = query.double() @ key.double().transpose(2, 3) / 8**0.5
    expected = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1) @ value.double()
    close(kernels.attention(query, key, value, visible if masked else None, 0.0), expected, torch.float32)


@BOTH
def test_attention_dropout_keeps_the_mean(kernels: Kernels) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 5, 4)
    kept = kernels.attention(query, key, value, None, 0.0)
    many = torch.stack([kernels.attention(query, key, value, None, 0.3) for _ in range(4000)])
    assert not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.mean(0), kept, atol=0.1, rtol=0)


@EVERY_TYPE
def test_attention_to_a_cache_is_the_same_and_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 37, 8), torch.randn(2, 3, 37, 8)
    query, keys, values = query.to(dtype), keys.to(dtype), values.to(dtype)
    hidden = torch.rand(2, 1, 10, 37) < 0.5
    hidden[..., 0] = False
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    scores = query.double() @ keys.double().transpose(2, 3) / 8**0.5
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values.double()
    ours, theirs = (kernels.cached_attention(query, keys, values, mask) for kernels in (cpu, cuda))
    close(ours, theirs, dtype)
    close(ours, expected, dtype)


# The vocabulary


@BOTH
@EVERY_TYPE
@pytest.mark.parametrize("rows", [0, 1, 23])
@pytest.mark.parametrize("at_a_time", [2**18, 150, 1])
def test_exponentiated_logits_are_a_multiple_of_their_softmax_next_to_their_log_sum(
    at_a_time: int, rows: int, dtype: torch.dtype, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LOSS_LOGITS", at_a_time)
    torch.manual_seed(0)
    logits = torch.randn(rows, 50).mul_(8).to(dtype)
    powers = logits.clone()
    normaliser, total = kernels.exponentiate(powers)
    assert (normaliser.dtype, total.dtype, powers.dtype) == (torch.float32, torch.float32, dtype)
    assert normaliser.shape == total.shape == (rows, 1)
    close(powers / total, logits.double().softmax(-1), dtype)
    # In fp32 whatever the precision of the logits.
    close(normaliser, logits.double().logsumexp(-1, keepdim=True), torch.float32)
    close(total / powers.double().sum(-1, keepdim=True), torch.ones(rows, 1), dtype)


@BOTH
def test_exponentiating_columns_of_a_wider_buffer_leaves_the_others_as_they_are(kernels: Kernels) -> None:
    torch.manual_seed(0)
    buffer = torch.randn(5, 64)
    before = buffer.clone()
    _, total = kernels.exponentiate(buffer[:, :50])
    close(buffer[:, :50] / total, before[:, :50].double().softmax(-1), torch.float32)
    assert torch.equal(buffer[:, 50:], before[:, 50:])


@BOTH
@EVERY_TYPE
@pytest.mark.parametrize("vocabulary", [3, BLOCK_SIZE, BLOCK_SIZE + 1, 1000])
@pytest.mark.parametrize("at_a_time", [2**19, 1])
def test_top_tokens_are_those_of_a_full_log_softmax(
    at_a_time: int, vocabulary: int, dtype: torch.dtype, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SEARCH_LOGITS", at_a_time)
    torch.manual_seed(vocabulary)
    logits, count = torch.randn(7, vocabulary).mul_(4).to(dtype), min(20, vocabulary - 1)
    tokens, banned = torch.randint(vocabulary, (7, 5)), torch.rand(7, 5) < 0.5
    expected = logits.double().log_softmax(-1)
    for row, (some, bans) in enumerate(zip(tokens, banned, strict=True)):
        expected[row, some[bans]] = -torch.inf
    padded = nn.functional.pad(logits, (0, whole_blocks(vocabulary) - vocabulary), value=99.0)
    best, found = kernels.top_tokens(padded, vocabulary, tokens, banned, count)
    torch.testing.assert_close(best.double(), expected.topk(count).values, rtol=1e-5, atol=1e-5)
    free = best.isfinite()  # a banned token may be any
    torch.testing.assert_close(expected.gather(1, found)[free], best.double()[free], rtol=1e-5, atol=1e-5)
    assert all(len(set(row[kept].tolist())) == kept.sum() for row, kept in zip(found, free, strict=True))
    assert found.max() < vocabulary


def test_top_tokens_are_the_same_whatever_the_pieces_and_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(11, 1024).mul_(4)  # in fp32, so that no two tie
    tokens, banned = torch.randint(1000, (11, 9)), torch.rand(11, 9) < 0.5
    found = []
    for kernels, at_a_time in ((cpu, 3 * 1000), (cpu, 2**19), (cuda, 3 * 1000), (cuda, 2**26)):
        monkeypatch.setattr(kernels, "SEARCH_LOGITS", at_a_time)
        found.append(kernels.top_tokens(logits.clone(), 1000, tokens, banned, 20))
    for best, ids in found[1:]:
        torch.testing.assert_close(best, found[0][0], rtol=1e-6, atol=1e-6)
        assert torch.equal(ids, found[0][1])


@BOTH
@EVERY_TYPE
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("vocabulary", [128, 203])
def test_a_projection_computes_the_products_with_its_weight(
    vocabulary: int, differentiable: bool, dtype: torch.dtype, kernels: Kernels
) -> None:
    torch.manual_seed(0)
    weight, hidden = nn.Parameter(torch.randn(vocabulary, 64).to(dtype), requires_grad=False), torch.randn(7, 64)
    before, hidden = weight.detach().clone(), hidden.to(dtype)
    projection = kernels.projection(weight, differentiable=differentiable)
    assert torch.equal(weight, before)
    logits = projection.logits(hidden)
    scale = 64**0.5
    close(logits[:, :vocabulary] / scale, hidden.double() @ before.double().t() / scale, dtype)
    # There may be more columns, which contribute nothing to loss and gradient.
    assert not logits[:, vocabulary:].any()
    if differentiable:
        pull, scale = torch.randn(logits.shape).to(dtype), vocabulary**0.5
        close(projection.gradient(pull) / scale, pull[:, :vocabulary].double() @ before.double() / scale, dtype)


def test_a_gpu_pads_the_vocabulary_in_the_memory_of_the_weight_itself() -> None:
    weight = nn.Parameter(torch.randn(203, 16), requires_grad=False)
    projection = cuda.projection(weight, differentiable=True)
    hidden = torch.randn(2, 16)
    assert projection.logits(hidden).shape == (2, 256)
    with torch.no_grad():
        weight[7] = 0.0
    assert not projection.logits(hidden)[:, 7].any()
    out = torch.empty(2, 256)
    assert projection.logits(hidden, out).data_ptr() == out.data_ptr()


def test_a_plain_projection_writes_its_logits_into_the_buffer() -> None:
    weight, hidden, out = torch.randn(5, 4), torch.randn(3, 4), torch.empty(3, 5)
    found = PlainProjection(weight).logits(hidden, out)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(found, hidden @ weight.t())


# Frozen layers


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_model_with_frozen_layers_gives_the_same_logits(differentiable: bool, gpt2: GPT2LMHeadModel) -> None:
    ids = torch.arange(40).view(2, 20)
    gpt2.requires_grad_(False)
    with torch.no_grad():
        before = gpt2(ids).logits
        cuda.freeze_layers(gpt2, differentiable=differentiable)
        assert torch.equal(gpt2(ids).logits, before)
        cpu.freeze_layers(gpt2, differentiable=differentiable)
        torch.testing.assert_close(gpt2(ids).logits, before, rtol=1e-5, atol=1e-5)
