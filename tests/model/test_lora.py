import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_dist.config import LoraSettings, ModelSettings
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.adapter import load_adapter, save_adapter
from lora_dist.model.base import identify, load_base
from lora_dist.model.masks import keep_mask
from lora_dist.presets import BASELINE, IMPROVED

Init = Literal["original", "gaussian"]
EVERY_LAYER = ("c_attn", "c_proj", "c_fc")
IDS = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))


def injected(gpt2: GPT2LMHeadModel, targets: tuple[str, ...] = EVERY_LAYER, dropout: float = 0.0) -> GPT2LMHeadModel:
    """The model with matrices that are all far from zero."""
    lora.inject(gpt2, LoraSettings(rank=4, alpha=2.0, dropout=dropout, targets=targets, init="gaussian"), seed=1)
    return gpt2


def plain(folder: Path) -> GPT2LMHeadModel:
    """The checkpoint as transformers loads it, with no row for the reference token."""
    return GPT2LMHeadModel.from_pretrained(folder)


def with_peft(base: GPT2LMHeadModel, targets: tuple[str, ...], state: dict[str, Tensor]) -> Any:
    config = peft.LoraConfig(
        r=4, lora_alpha=2, lora_dropout=0.0, target_modules=list(targets), fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(base, config)
    assert peft.set_peft_model_state_dict(wrapped, dict(state)).unexpected_keys == []
    return wrapped


def state(gpt2: GPT2LMHeadModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in lora.parameters(gpt2).items()}


def logits(module: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.eval()(input_ids=ids).logits
    return found


def layer(gpt2: GPT2LMHeadModel) -> lora.LoraConv1D:
    found = gpt2.transformer.h[1].attn.c_attn
    assert isinstance(found, lora.LoraConv1D)
    return found


# Against PEFT


@pytest.mark.parametrize("targets", [("c_attn",), EVERY_LAYER, ("mlp.c_proj",)])
def test_forward_and_gradients_equal_pefts(tiny_gpt2: Path, gpt2: GPT2LMHeadModel, targets: tuple[str, ...]) -> None:
    ours = injected(gpt2, targets)
    theirs = with_peft(plain(tiny_gpt2), targets, state(ours))
    torch.testing.assert_close(logits(ours)[..., :-1], logits(theirs), rtol=1e-5, atol=1e-5)
    assert (logits(plain(tiny_gpt2)) - logits(theirs)).abs().max() > 0.1
    for module in (ours, theirs):
        module(input_ids=IDS).logits[..., :300].logsumexp(-1).mean().backward()
    gradients = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert gradients.keys() == lora.parameters(ours).keys()
    for name, parameter in lora.parameters(ours).items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("error:fan_in_fan_out")
@pytest.mark.parametrize("resized", [False, True])
def test_a_saved_adapter_loads_in_peft(
    tmp_path: Path, tiny_gpt2: Path, gpt2: GPT2LMHeadModel, tokenizer: Any, resized: bool
) -> None:
    identity = identify(gpt2, tokenizer, str(tiny_gpt2))
    settings = LoraSettings(rank=4, alpha=2.0, targets=EVERY_LAYER, init="gaussian")
    lora.inject(gpt2, settings, seed=1)
    save_adapter(tmp_path, state(gpt2), settings, identity)
    base = plain(tiny_gpt2)
    if resized:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(theirs)[..., :300], logits(gpt2)[..., :300], rtol=1e-5, atol=1e-5)


def test_an_adapter_saved_by_peft_loads_here(
    tmp_path: Path, tiny_gpt2: Path, gpt2: GPT2LMHeadModel, tokenizer: Any
) -> None:
    source = injected(load_base(ModelSettings(name=str(tiny_gpt2)), tokenizer, torch.float32))
    theirs = with_peft(plain(tiny_gpt2), EVERY_LAYER, state(source))
    theirs.save_pretrained(tmp_path)
    load_adapter(tmp_path, gpt2, tokenizer)
    torch.testing.assert_close(logits(gpt2)[..., :300], logits(theirs), rtol=1e-5, atol=1e-5)
    assert layer(gpt2).scaling == 0.5


# Against the formula


def test_a_layer_computes_the_formula_with_q_k_v_at_their_offsets(gpt2: GPT2LMHeadModel) -> None:
    c_attn = layer(injected(gpt2))
    a, b, width = c_attn.lora_A, c_attn.lora_B, 32
    weight, bias = c_attn.weight(), c_attn.base.bias
    assert isinstance(bias, Tensor)
    x = torch.randn(5, width)
    out = c_attn(x)
    for part in range(3):  # q, k, v: each its columns of W and its rows of B
        own = slice(part * width, (part + 1) * width)
        expected = x @ weight[:, own] + bias[own] + 2 / 4 * (x @ a.T @ b[own].T)
        torch.testing.assert_close(out[:, own], expected, rtol=1e-5, atol=1e-5)


def test_original_init_has_zero_b_and_leaves_the_logits_to_the_bit(gpt2: GPT2LMHeadModel) -> None:
    before = logits(gpt2)
    lora.inject(gpt2, LoraSettings(rank=4, targets=EVERY_LAYER, init="original"), seed=1)
    assert torch.equal(logits(gpt2), before)
    for name, parameter in lora.parameters(gpt2).items():
        assert parameter.any() == ("lora_A" in name)


@pytest.mark.parametrize("init", ["original", "gaussian"])
def test_initial_values_have_standard_deviation_one_over_r_and_depend_on_the_seed_only(init: Init) -> None:
    first, again, other = (
        lora.LoraConv1D(Conv1D(2304, 768), LoraSettings(rank=16, init=init), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first.lora_A.std().item() == pytest.approx(1 / 16, rel=0.03)
    assert first.lora_B.std().item() == pytest.approx(1 / 16 if init == "gaussian" else 0, rel=0.03)
    assert torch.equal(first.lora_A, again.lora_A)
    assert torch.equal(first.lora_B, again.lora_B)
    assert not torch.equal(first.lora_A, other.lora_A)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "baseline", "improved"),
    [(768, 12, 12, 147_456, 2_359_296), (1024, 24, 16, 393_216, 6_291_456)],
)
def test_trainable_parameters_are_as_many_as_in_the_paper(
    width: int, depth: int, heads: int, baseline: int, improved: int
) -> None:
    for preset, count in ((BASELINE.lora, baseline), (IMPROVED.lora, improved)):
        with torch.device("meta"):
            gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=depth, n_head=heads))
        lora.inject(gpt2, preset, seed=0)
        assert sum(p.numel() for p in gpt2.parameters() if p.requires_grad) == count
        assert lora.trainable_count(gpt2) == lora.expected_count(gpt2, preset) == count


def test_dropout_acts_on_the_input_while_training_only() -> None:
    c_attn = lora.LoraConv1D(Conv1D(96, 32), LoraSettings(rank=1, alpha=3.0, dropout=0.5), torch.Generator())
    with torch.no_grad():
        c_attn.lora_A.copy_(torch.tensor([1.0, 10.0, 100.0] + [0.0] * 29))
        c_attn.lora_B.fill_(1.0)
        rows = torch.ones(2000, 32)
        torch.manual_seed(0)
        trained = ((c_attn.train()(rows) - c_attn.base(rows))[:, 0] / 3).round()
        decoded = ((c_attn.eval()(rows) - c_attn.base(rows))[:, 0] / 3).round()
    # Each of the three inputs that matter is dropped or doubled independently, which keeps the mean of A x.
    assert set(trained.tolist()) == {0, 2, 20, 22, 200, 202, 220, 222}
    assert trained.mean().item() == pytest.approx(111, rel=0.05)
    assert set(decoded.tolist()) == {111}


def test_a_model_in_evaluation_mode_stays_in_it(gpt2: GPT2LMHeadModel) -> None:
    assert not gpt2.training
    injected(gpt2)
    assert not any(module.training for module in gpt2.modules())


# Merging


def apply(gpt2: GPT2LMHeadModel, *actions: Callable[[lora.LoraConv1D], None]) -> None:
    for action in actions:
        for _, module in lora.layers(gpt2):
            action(module)


def test_merge_and_unmerge_are_exact_and_idempotent(gpt2: GPT2LMHeadModel) -> None:
    bits = {name: p.detach().clone() for name, p in gpt2.named_parameters()}
    before = logits(injected(gpt2))
    c_attn = layer(gpt2)
    for _ in range(2):
        apply(gpt2, lora.LoraConv1D.merge, lora.LoraConv1D.merge)
        torch.testing.assert_close(logits(gpt2), before, rtol=1e-5, atol=1e-5)
        merged = bits["transformer.h.1.attn.c_attn.weight"] + 0.5 * (c_attn.lora_B @ c_attn.lora_A).T
        torch.testing.assert_close(c_attn.weight(), merged, rtol=1e-6, atol=1e-6)
        apply(gpt2, lora.LoraConv1D.unmerge, lora.LoraConv1D.unmerge)
        assert torch.equal(logits(gpt2), before)
        for name, parameter in gpt2.named_parameters():
            assert "lora_" in name or torch.equal(parameter, bits[name.replace(".base.", ".")]), name


def test_evaluation_mode_merges_nothing(gpt2: GPT2LMHeadModel) -> None:
    weight = layer(injected(gpt2)).weight().clone()
    for _ in range(3):
        gpt2.train()
        gpt2.eval()
    assert torch.equal(layer(gpt2).weight(), weight)
    assert not any(module.merged for _, module in lora.layers(gpt2))


@pytest.mark.parametrize("merged_before", [False, True])
def test_fold_gives_a_plain_gpt2_that_saves_and_loads(
    tmp_path: Path, gpt2: GPT2LMHeadModel, merged_before: bool
) -> None:
    keys = set(gpt2.state_dict())
    before = logits(injected(gpt2))
    if merged_before:
        apply(gpt2, lora.LoraConv1D.merge)
    lora.fold(gpt2)
    assert set(gpt2.state_dict()) == keys
    assert not list(lora.layers(gpt2))
    gpt2.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain(tmp_path)), before, rtol=1e-5, atol=1e-5)


# What is trained


def test_one_step_changes_every_matrix_and_no_bit_of_the_frozen_weights(gpt2: GPT2LMHeadModel) -> None:
    before = {name: p.detach().clone() for name, p in injected(gpt2, dropout=0.1).named_parameters()}
    optimizer = torch.optim.AdamW((p for p in gpt2.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.01)
    gpt2.train()(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    for name, parameter in gpt2.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name


def test_under_a_bf16_base_a_and_b_stay_fp32_and_get_gradients(tiny_gpt2: Path, tokenizer: Any) -> None:
    base = load_base(ModelSettings(name=str(tiny_gpt2)), tokenizer, torch.bfloat16)
    gpt2 = injected(base)
    gpt2(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in lora.parameters(gpt2).items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert layer(gpt2).weight().dtype == torch.bfloat16


@pytest.mark.parametrize("targets", [("c_atn",), ("c_attn", "attn"), ("_attn",), ("lm_head",)])
def test_a_target_that_matches_no_layer_is_refused_with_the_models_layer_names(
    gpt2: GPT2LMHeadModel, targets: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=rf"--lora\.targets {targets[-1]} matches no layer: .* c_attn, c_fc, c_proj"):
        lora.inject(gpt2, LoraSettings(targets=targets), seed=0)
    assert not list(lora.layers(gpt2))


A_OF_LAYER_1 = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({A_OF_LAYER_1: None}, "1 of its matrices are missing and 0 are unknown, first .*h.1"),
        ({"base_model.model.transformer.h.7.attn.c_attn.lora_A.weight": torch.ones(4, 32)}, "0 .* 1 are .*h.7"),
        ({A_OF_LAYER_1: torch.ones(8, 32)}, r"h.1.attn.c_attn.lora_A.weight is \(8, 32\), the model needs \(4, 32\)"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_copied(
    gpt2: GPT2LMHeadModel, change: dict[str, Tensor | None], message: str
) -> None:
    before = state(injected(gpt2))
    changed = {name: torch.zeros_like(value) for name, value in before.items()} | change
    with pytest.raises(UserError, match=message):
        lora.load(gpt2, {name: value for name, value in changed.items() if value is not None})
    assert all(torch.equal(value, before[name]) for name, value in state(gpt2).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.0, 0.99])
def test_the_mask_drops_each_element_independently_with_its_probability(dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = keep_mask((801, 1003), dropout, dtype, torch.device("cpu"))
    assert (mask.dtype, mask.shape) == (dtype, (801, 1003))
    assert set(np.unique(mask.float().numpy()).tolist()) <= {0.0, 1.0}
    kept, deviation = mask.float(), 5 * math.sqrt(dropout * (1 - dropout) / mask.numel())
    assert kept.mean().item() == pytest.approx(1 - dropout, abs=deviation + 2**-16)
    for phase in range(4):  # four come from one random 64-bit integer
        assert kept.flatten()[phase::4].mean().item() == pytest.approx(1 - dropout, abs=2 * deviation + 2**-16)
    both = kept.flatten()[:-1] * kept.flatten()[1:]
    assert both.mean().item() == pytest.approx((1 - dropout) ** 2, abs=2 * deviation + 2**-15)


def test_dropout_keeps_the_mean_of_the_product(gpt2: GPT2LMHeadModel) -> None:
    torch.manual_seed(0)
    injected(gpt2)
    c_attn = layer(gpt2)
    with torch.no_grad():
        c_attn.lora_B.normal_()
    x = torch.randn(1, c_attn.lora_A.shape[1])
    without = c_attn.eval()(x)
    c_attn.train().dropout = 0.25
    torch.testing.assert_close(c_attn(x.expand(20000, -1)).mean(0), without[0], atol=0.1, rtol=0.05)
