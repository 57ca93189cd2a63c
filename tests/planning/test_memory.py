"""The memory model compared with what autograd saves and what torch's allocator counts."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from lora_dist.config import LoraSettings, Precision
from lora_dist.data.collate import Batch, collate
from lora_dist.data.shapes import RoundedShapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model import lora
from lora_dist.model.base import DTYPES
from lora_dist.model.gpt2 import fuse_activation
from lora_dist.model.kernels import cpu
from lora_dist.planning.activations import logits_bytes, saved_bytes
from lora_dist.presets import BASELINE, IMPROVED, ORIGINAL
from lora_dist.training.loss import ReferenceLoss

PACKED_OR_NOT = pytest.mark.parametrize("partitioned", [False, True], ids=["packed", "partitioned"])


def build(settings: LoraSettings, precision: Precision, dropout: float = 0.0, **shape: int) -> GPT2LMHeadModel:
    config = GPT2Config(attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout, **shape)
    model = GPT2LMHeadModel(config).to(DTYPES[precision])
    fuse_activation(model.transformer)
    lora.inject(model, settings, seed=0)
    return model


def some_examples(vocabulary: int) -> TokenizedExamples:
    lengths = np.array([61, 58, 47, 40, 39, 22])
    ids = np.random.default_rng(0).integers(0, vocabulary, lengths.sum()).astype(np.int32)
    return TokenizedExamples(ids, np.cumsum([0, *lengths]), lengths // 2, np.arange(len(lengths)))


def count_saved(model: GPT2LMHeadModel, batch: Batch, partitioned: bool) -> int:
    """Bytes of all storages that autograd keeps, without the parameters' own."""
    module = ReferenceLoss(copy.deepcopy(model), cpu, 0.1, partitioned=partitioned).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(batch)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "settings",
    [
        BASELINE.lora,
        IMPROVED.lora,
        ORIGINAL.lora,
        LoraSettings(targets=("c_attn", "c_fc"), dora=True),
        LoraSettings(targets=("mlp.c_proj",)),  # the first block's attention gets no gradient
        LoraSettings(targets=("h.1.attn.c_proj", "h.2.mlp.c_fc"), dropout=0.0),  # nor the whole first block
    ],
    ids=["baseline", "improved", "original", "DoRA", "second layers", "some blocks"],
)
@PACKED_OR_NOT
def test_saved_bytes_are_what_autograd_saves(
    settings: LoraSettings, dropout: float, precision: Precision, partitioned: bool
) -> None:
    model = build(settings, precision, dropout, n_embd=96, n_layer=3, n_head=4, n_inner=224, vocab_size=500)
    examples = some_examples(500)
    batch = collate(examples, np.arange(len(examples)), 0, RoundedShapes(cpu.SHAPE_STEP))
    counted, shape = count_saved(model, batch, partitioned), batch.shape
    assert saved_bytes(model, shape, precision, "cpu") == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@PACKED_OR_NOT
def test_the_peak_of_a_step_is_the_saved_bytes_and_the_logits(
    precision: Precision, partitioned: bool, tmp_path: Path
) -> None:
    model = build(IMPROVED.lora, precision, n_layer=3, n_embd=384, n_head=6)
    module = ReferenceLoss(copy.deepcopy(model), cpu, 0.1, partitioned=partitioned).train()
    examples = some_examples(50257)
    batch = collate(examples, np.arange(len(examples)), 0, RoundedShapes(cpu.SHAPE_STEP))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        module(batch)[0].backward()
    profiled.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    peak = int(np.cumsum([change for _, change in changes]).max())
    shape = batch.shape
    expected = saved_bytes(model, shape, precision, "cpu") + logits_bytes(shape, 50257, precision, "cpu")
    assert expected == pytest.approx(peak, rel=0.05)
