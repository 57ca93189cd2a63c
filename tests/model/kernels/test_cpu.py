"""Packed weights compared with plain ones: the same products, losses, gradients and logits, to rounding."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lora_dist.config import LoraSettings
from lora_dist.data.collate import collate
from lora_dist.data.shapes import RoundedShapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.decoding.kv_cache import KVCache, lay_out
from lora_dist.model import lora
from lora_dist.model.compat import can_pack
from lora_dist.model.kernels import cpu
from lora_dist.model.kernels.packed import PackedLinear, PackedProjection, freeze_layers
from lora_dist.presets import BASELINE, IMPROVED
from lora_dist.training.loss import ReferenceLoss

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=list(TOLERANCE), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    if not can_pack(found):
        pytest.skip(f"torch packs no {found} on this CPU")
    return found


@pytest.fixture
def plain(dtype: torch.dtype) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=64, n_layer=3, n_head=4, vocab_size=203, n_positions=96, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    return GPT2LMHeadModel(config).to(dtype).requires_grad_(False).eval()


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("with_bias", [True, False])
def test_product_and_gradient_are_those_of_torchs_linear(rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    weight, bias = torch.randn(48, 80, dtype=dtype), nn.Parameter(torch.randn(48, dtype=dtype), requires_grad=False)
    x, pull = torch.randn(rows, 80, dtype=dtype, requires_grad=True), torch.randn(rows, 48, dtype=dtype)
    layer = PackedLinear(weight, bias if with_bias else None, differentiable=True)
    (gradient,) = torch.autograd.grad(layer(x), x, pull)
    exact = F.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    (expected,) = torch.autograd.grad(exact, x, pull.double())
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(layer(x).double(), exact, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=10 * tolerance)
    undifferentiable = PackedLinear(weight, bias if with_bias else None, differentiable=False)
    assert torch.equal(undifferentiable(x.detach()), layer(x))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [BASELINE.lora, IMPROVED.lora], ids=["baseline", "improved"])
def test_loss_and_gradients_are_those_of_plain_weights(
    plain: GPT2LMHeadModel, settings: LoraSettings, checkpointing: bool, dtype: torch.dtype
) -> None:
    lengths = np.array([31, 28, 17, 9])
    ids = np.random.default_rng(0).integers(0, 203, lengths.sum()).astype(np.int32)
    examples = TokenizedExamples(ids, np.cumsum([0, *lengths]), lengths // 2, np.arange(4))
    batch = collate(examples, np.arange(4), 0, RoundedShapes(cpu.SHAPE_STEP))
    lora.inject(plain, LoraSettings(rank=settings.rank, targets=settings.targets, dropout=0.0), seed=0)
    with torch.no_grad():
        for parameter in lora.parameters(plain).values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    found = []
    for packed in (False, True):
        model = copy.deepcopy(plain)
        module = ReferenceLoss(model, cpu, 0.1, gradient_checkpointing=checkpointing, partitioned=not packed).train()
        loss, sums = module(batch)
        (gradients,) = torch.autograd.grad(loss, module.adapter.values)
        found.append((sums, gradients))
        assert packed == any(isinstance(part, PackedLinear) for part in module.modules())
    (sums, gradients), (packed_sums, packed_gradients) = found
    torch.testing.assert_close(packed_sums, sums, rtol=TOLERANCE[dtype] / 10, atol=0)
    assert (packed_gradients - gradients).norm() < TOLERANCE[dtype] * gradients.norm()


def test_logits_of_decoding_are_those_of_plain_weights(
    plain: GPT2LMHeadModel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5, 3, 8, 1], [7, 7]]
    models = [lay_out(copy.deepcopy(plain))]
    monkeypatch.setattr("lora_dist.model.kernels.packed.can_pack", lambda _: False)
    models.append(lay_out(plain))
    assert [isinstance(model.projection, PackedProjection) for model in models] == [True, False]
    assert [any(isinstance(m, PackedLinear) for m in model.body.modules()) for model in models] == [True, False]
    with torch.no_grad():
        ours, plainly = (KVCache(model, prompts, 3, 4) for model in models)
        close = partial(torch.testing.assert_close, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        close(ours.logits, plainly.logits)
        for cache in (ours, plainly):
            cache.begin_block(1)
        tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
        close(ours.step(tokens), plainly.step(tokens))


def test_packed_weights_are_no_parameters_and_the_checkpoints_file_is_unmapped(
    plain: GPT2LMHeadModel, dtype: torch.dtype, tmp_path: Path
) -> None:
    plain.save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=dtype).requires_grad_(False)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    freeze_layers(model, differentiable=True)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    layers = 3 * 12 * 64 * 64
    assert sum(parameter.numel() for parameter in model.parameters()) == before - layers
    assert len([layer for layer in model.modules() if isinstance(layer, PackedLinear)]) == 12


def test_the_packed_projection_gives_the_products_of_the_plain_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, hidden, pull = (torch.randn(*shape, dtype=dtype) for shape in ((203, 64), (7, 64), (7, 203)))
    packed = cpu.projection(weight, differentiable=True)
    assert isinstance(packed, PackedProjection)
    tolerance = TOLERANCE[dtype]
    for ours, exact in (
        (packed.logits(hidden), hidden.double() @ weight.double().t()),
        (packed.gradient(pull), pull.double() @ weight.double()),
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=10 * tolerance)
    with pytest.raises(AssertionError, match="no gradient"):
        cpu.projection(weight, differentiable=False).gradient(pull)
