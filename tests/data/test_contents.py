"""The contents of all micro-batches, computed before a training, compared with those of its steps one by one."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_dist.config import TrainSettings
from lora_dist.data import contents as contents_module
from lora_dist.data.contents import training_contents, training_shapes
from lora_dist.data.shapes import BatchShape, Contents, RoundedShapes, Shapes, StaticShapes
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.world import World
from lora_dist.training.step import OptimizerStep
from lora_dist.training.strategy import TrainingStrategy

CASES = pytest.mark.parametrize(
    ("cfg", "processes"),
    [
        (TrainSettings(epochs=3), 1),
        (TrainSettings(epochs=2, accumulation_steps=4), 1),
        (TrainSettings(epochs=3, accumulation_steps=2), 2),
        (TrainSettings(epochs=3, global_batch_size=12), 3),
        (TrainSettings(epochs=2, global_batch_size=12, accumulation_steps=2, seed=5), 3),
        (TrainSettings(max_steps=7), 4),  # ends before the second epoch does
        (TrainSettings(epochs=2, max_steps=6, global_batch_size=14), 2),  # ends with an epoch's last, smaller batch
        (TrainSettings(epochs=2, global_batch_size=21), 3),  # one example is left for three ranks
        (TrainSettings(global_batch_size=64), 2),  # more than the corpus has
    ],
)


class Recorder:
    """Shapes that record what they are asked for."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes, self.contents, self.found = shapes, Counter[Contents](), Counter[BatchShape]()

    def fit(self, contents: Contents) -> BatchShape:
        shape = self.shapes.fit(contents)
        self.contents[contents] += 1
        self.found[shape] += 1
        return shape

    def for_all(self, contents: Sequence[Contents]) -> Shapes:
        return self


class Idle:
    """A `TrainingStrategy` that computes nothing."""

    def backward(self, *_: object, scale: list[float], last: bool) -> Tensor:
        return torch.zeros(1, 2)

    def step(self, learning_rate: list[float]) -> None:
        pass

    def seed_dropout(self, seeds: list[int]) -> None:
        pass


def corpus(examples: int = 43) -> TokenizedExamples:
    lengths = np.random.default_rng(1).integers(9, 99, examples)
    return TokenizedExamples(
        np.zeros(lengths.sum(), np.int32), np.cumsum([0, *lengths]), lengths // 3, np.arange(examples)
    )


def recorded(train: TokenizedExamples, cfg: TrainSettings, processes: int, shapes: Shapes) -> Recorder:
    """All steps of a training, on all ranks."""
    recorder = Recorder(shapes)
    for rank in range(processes):
        here = cast(World, SimpleNamespace(rank=rank, size=processes, device=torch.device("cpu")))
        step = OptimizerStep(cast(TrainingStrategy, Idle()), train, [cfg], recorder, 0, here)
        for number in range(cfg.total_steps(len(train))):
            step(number)
    return recorder


@CASES
def test_the_contents_are_those_of_every_step_on_every_rank(cfg: TrainSettings, processes: int) -> None:
    train = corpus()
    found, counts = training_contents(train, cfg, processes)
    ours = {Contents(*row): count for row, count in zip(found.tolist(), counts.tolist(), strict=True)}
    assert ours == recorded(train, cfg, processes, RoundedShapes(1)).contents
    assert sum(ours.values()) == cfg.total_steps(len(train)) * processes * cfg.accumulation_steps


@pytest.mark.parametrize("pairs", [1, 150])
def test_sharding_many_steps_at_once_or_a_few_is_the_same(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train, cfg = corpus(), TrainSettings(epochs=3, accumulation_steps=2)
    expected = training_contents(train, cfg, 2)
    monkeypatch.setattr(contents_module, "PAIRS", pairs)
    for ours, theirs in zip(training_contents(train, cfg, 2), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_the_counts_of_an_epoch_sum_to_its_examples_tokens_and_labels() -> None:
    train, cfg = corpus(), TrainSettings(epochs=1, accumulation_steps=2)
    found, counts = training_contents(train, cfg, 2)
    rows, tokens, _, labels = (found * counts[:, None]).sum(0).tolist()
    assert (rows, tokens, labels) == (43, len(train.ids) - 43, train.label_counts.sum())


@CASES
def test_the_static_shapes_hold_every_micro_batch_of_every_rank(cfg: TrainSettings, processes: int) -> None:
    train = corpus()
    shapes = training_shapes(train, cfg, processes, multiple=16, static=5)
    assert isinstance(shapes, StaticShapes)
    assert len(shapes.shapes) <= 5
    assert set(recorded(train, cfg, processes, shapes).found) <= set(shapes.shapes)


def test_without_static_shapes_or_with_shared_mrs_each_batch_is_rounded_by_itself() -> None:
    train = corpus()
    assert training_shapes(train, TrainSettings(), 1, multiple=16, static=0) == RoundedShapes(16)
    assert training_shapes(train, TrainSettings(refs_per_mr=2), 1, multiple=16, static=12) == RoundedShapes(16)
