"""The captured loss by itself: when it replays, and what its backward pass returns."""

from dataclasses import replace

import numpy as np
import torch
from recorded_graph import RecordedGraphs
from transformers import GPT2LMHeadModel

from lora_dist.data.collate import collate, padding_batch
from lora_dist.data.shapes import BatchShape, RoundedShapes, StaticShapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model import lora
from lora_dist.model.kernels import cpu
from lora_dist.presets import IMPROVED
from lora_dist.training.captured import CapturedLoss
from lora_dist.training.loss import ReferenceLoss


def test_only_training_replays_and_every_gradient_is_a_copy_times_that_of_the_loss(gpt2: GPT2LMHeadModel) -> None:
    lora.inject(gpt2, replace(IMPROVED.lora, init="gaussian"), seed=1)
    loss, recorder = ReferenceLoss(gpt2, cpu, 0.1), RecordedGraphs()
    captured, values = CapturedLoss(loss), loss.adapter.values
    shapes = StaticShapes((BatchShape(tokens=64, rows=2, length=32, outputs=32, labels=32),))
    train = TokenizedExamples(np.arange(60, dtype=np.int32), np.array([0, 31, 60]), np.array([20, 12]), np.arange(2))
    batches = [collate(train, np.array(indices), 0, shapes) for indices in ([0, 1], [1])]
    captured.capture([padding_batch(train, 0, *shapes.shapes)], recorder, show_progress=False)
    for factor in (1.0, -0.5):
        gradients = []
        for module in (loss.train(), captured):
            torch.manual_seed(1)
            found = [torch.autograd.grad(module(batch, 0.25)[0] * factor, values)[0] for batch in batches]
            assert not torch.equal(*found)
            gradients.append(torch.cat(found))
        assert torch.equal(*gradients)
    assert len(recorder.replayed) == 4
    captured.eval()(batches[0])
    with torch.no_grad():
        captured.train()(batches[0])
    captured(collate(train, np.array([0]), 0, RoundedShapes(16)))
    captured.close()
    captured(batches[0])
    assert len(recorder.replayed) == 4
