import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import LoraSettings
from lora_dist.data.collate import collate
from lora_dist.data.shapes import RoundedShapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model import lora
from lora_dist.model.gpt2 import (
    RowIndex,
    causal_attention,
    fuse_activation,
    pad_rows,
    run_body,
    take_rows,
    visible_in_segments,
)
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.select import Kernels
from lora_dist.training.loss import ReferenceLoss


@pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_and_its_gradient_are_torchs(heads: int, kernels: Kernels) -> None:
    torch.manual_seed(0)
    fused = torch.randn(3, 11, 3 * 16, requires_grad=True)
    query, key, value = (part.view(3, 11, heads, -1).transpose(1, 2) for part in fused.chunk(3, 2))
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
    ours = causal_attention(kernels, fused, heads, dropout=0.0)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad((ours * direction).sum(), fused)
    (their_gradient,) = torch.autograd.grad((theirs * direction).sum(), fused)
    torch.testing.assert_close(gradient, their_gradient)


def test_attention_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    fused = torch.randn(1, 5, 3 * 4)
    kept = causal_attention(cpu, fused, 1, dropout=0.0)
    many = torch.stack([causal_attention(cpu, fused, 1, dropout=0.3) for _ in range(4000)])
    assert not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.mean(0), kept, atol=0.1, rtol=0)


def test_padding_and_taking_rows_are_inverse_and_each_is_the_others_gradient() -> None:
    torch.manual_seed(0)
    values, index = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([6, 0, 3, 2])
    rows = RowIndex(index, torch.tensor([1, -1, 3, 2, -1, -1, 0]))
    padded = pad_rows(values, rows)
    assert padded.shape == (7, 3)
    assert torch.equal(padded[index], values)
    assert padded.isfinite().all()
    assert torch.equal(take_rows(padded, rows), values)
    matrix = torch.randn(7, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: take_rows(v, rows), matrix)
    # Nothing may depend on the absent rows of `pad_rows`, so what follows must ignore them.
    assert torch.autograd.gradcheck(lambda v: pad_rows(v, rows)[index], values)
    (gradient,) = torch.autograd.grad(pad_rows(values, rows), values, pull := torch.randn(7, 3, dtype=torch.float64))
    assert torch.equal(gradient, pull[index])
    (gradient,) = torch.autograd.grad(take_rows(matrix, rows), matrix, pull[:4])
    assert torch.equal(gradient[index], pull[:4])
    assert not gradient[[1, 4, 5]].any()


def test_the_body_is_transformers_and_computes_only_the_outputs(gpt2: GPT2LMHeadModel) -> None:
    tokens = torch.randint(1, 300, (2, 13))
    theirs = gpt2.transformer(input_ids=tokens).last_hidden_state.flatten(0, 1)
    positions = torch.arange(13).repeat(2)

    def attend(_: int, fused: torch.Tensor) -> torch.Tensor:
        return causal_attention(cpu, fused.view(2, 13, -1), gpt2.config.n_head, 0.0).flatten(0, 1)

    torch.testing.assert_close(run_body(gpt2.transformer, tokens.flatten(), positions, attend), theirs)
    output_index = torch.tensor([25, 3, 12])
    found = run_body(gpt2.transformer, tokens.flatten(), positions, attend, lambda values: values[output_index])
    torch.testing.assert_close(found, theirs[output_index])


def test_a_reference_attends_to_the_mr_and_to_what_precedes_it_in_its_own_segment() -> None:
    visible = visible_in_segments(torch.tensor([[0, 0, 1, 1, 2, 2, -1]]))
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 6]]
    assert [row.nonzero()[:, 0].tolist() for row in visible[0]] == expected


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less(gpt2: GPT2LMHeadModel, dropout: float) -> None:
    lora.inject(gpt2, LoraSettings(rank=4, dropout=dropout, targets=("c_attn", "c_fc"), init="gaussian"), seed=1)
    examples = TokenizedExamples(np.arange(60, dtype=np.int32), np.array([0, 25, 60]), np.array([5, 9]), np.arange(2))
    batch = collate(examples, np.arange(2), 0, RoundedShapes(cpu.SHAPE_STEP))
    found, kept = [], []
    for checkpointing in (False, True):
        own = copy.deepcopy(gpt2)
        module, size = ReferenceLoss(own, cpu, 0.1, gradient_checkpointing=checkpointing).train(), [0]

        def count(tensor: Tensor, size: list[int] = size) -> Tensor:
            size[0] += tensor.numel()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss, _ = module(batch)
        kept.append(size[0])
        found.append(module.adapter.split(*torch.autograd.grad(loss, module.adapter.values)))
    ours, theirs = found
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].any() for name in lora.parameters(gpt2))
    assert kept[1] < 0.3 * kept[0]


def test_the_fused_activation_is_the_same_function(gpt2: GPT2LMHeadModel) -> None:
    from transformers.activations import NewGELUActivation

    old = NewGELUActivation()
    gpt2.transformer.h[0].mlp.act = old
    fuse_activation(gpt2.transformer)
    x = torch.linspace(-8, 8, 1001)
    assert gpt2.transformer.h[0].mlp.act is not old
    torch.testing.assert_close(gpt2.transformer.h[0].mlp.act(x), old(x), atol=1e-6, rtol=1e-6)
