"""Runs that train together over one base model: each adapter is that of its own run, to rounding."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from recorded_graph import graphs_on_a_cpu
from safetensors.torch import load_file
from small_corpus import write_small_corpus
from torch import Tensor

from lora_dist.config import DataSettings, ModelSettings, Settings
from lora_dist.distributed.world import World, world
from lora_dist.model.kernels import cpu, cuda
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir
from lora_dist.training.strategy import TrainingStrategy
from lora_dist.training.trainer import train

STEPS = 50
TOLERANCE = 1e-5  # fp32: products of more rows may round in another order


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        with world("cpu") as alone:
            yield alone


@pytest.fixture(scope="module")
def first(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """50 steps with dropout on 65 examples, three a batch, so that the last batch of each epoch has two."""
    corpus = tmp_path_factory.mktemp("together") / "corpus"
    write_small_corpus(corpus, seed=2, num_train_mrs=12)
    return replace(
        IMPROVED,
        model=ModelSettings(name=str(tiny_gpt2)),
        data=DataSettings(dir=corpus, limit_train=65),
        train=replace(
            IMPROVED.train,
            global_batch_size=3,
            epochs=9,
            max_steps=STEPS,
            warmup_steps=5,
            learning_rate=1e-3,
            log_steps=10,
            checkpoint_steps=20,
            max_grad_norm=0.5,
        ),
    )


def others(first: Settings, number: int) -> list[Settings]:
    """The first run and others, each of which differs from it in something else, and in its seed."""
    lora, cfg = first.lora, first.train
    found = [
        first,
        replace(first, lora=replace(lora, alpha=16.0, dropout=0.3), train=replace(cfg, seed=43)),
        replace(first, train=replace(cfg, seed=44, learning_rate=2e-3, warmup_steps=9, label_smoothing=0.0)),
        replace(first, lora=replace(lora, dropout=0.0, init="original"), train=replace(cfg, seed=45)),
        replace(first, train=replace(cfg, seed=46, weight_decay=0.1)),
    ]
    return found[:number]


def trained(runs: list[Settings], folder: Path, here: World) -> list[dict[str, Tensor]]:
    """The adapters of runs that train together."""
    folders = [RunDir(folder / str(number)) for number in range(len(runs))]
    train(list(zip(runs, folders, strict=True)), here)
    return [load_file(run.adapter / "adapter_model.safetensors") for run in folders]


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The norm of the difference of two adapters, relative to that of the second."""
    assert ours.keys() == theirs.keys()
    gap = math.sqrt(sum(float((ours[name] - theirs[name]).square().sum()) for name in ours))
    return gap / math.sqrt(sum(float(matrix.square().sum()) for matrix in theirs.values()))


def losses(run: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.mark.parametrize(
    ("number", "kernels", "accumulation"),
    [
        (2, cpu, 1),
        pytest.param(3, cpu, 1, marks=pytest.mark.slow),
        pytest.param(3, cuda, 1, marks=pytest.mark.slow),
        pytest.param(2, cpu, 3, marks=pytest.mark.slow),
        pytest.param(5, cpu, 1, marks=pytest.mark.slow),
        pytest.param(2, cuda, 3, marks=pytest.mark.slow),
        pytest.param(5, cuda, 1, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else str(value),
)
def test_each_of_n_adapters_is_that_of_its_own_run_in_any_place_and_captured_too(
    number: int, kernels: ModuleType, accumulation: int, first: Settings, here: World, tmp_path: Path
) -> None:
    runs = others(replace(first, train=replace(first.train, accumulation_steps=accumulation)), number)
    with graphs_on_a_cpu(kernels, shapes=4) if kernels is cuda else nullcontext() as recorders:
        alone = [trained([run], tmp_path / f"alone{i}", here)[0] for i, run in enumerate(runs)]
        together = trained(runs, tmp_path / "together", here)
        assert recorders is None or len(recorders[-1].replayed) == STEPS * accumulation
        reversed_order = trained(runs[::-1], tmp_path / "reversed", here)[::-1]
    for i, (ours, other, theirs) in enumerate(zip(together, reversed_order, alone, strict=True)):
        assert difference(ours, theirs) < TOLERANCE
        assert difference(other, theirs) < TOLERANCE
        for key in ("loss", "dev_loss", "samples"):
            expected = losses(tmp_path / f"alone{i}" / "0", key)
            assert losses(tmp_path / "together" / str(i), key) == pytest.approx(expected, rel=1e-5)
    assert min(difference(ours, theirs) for ours, theirs in zip(alone[1:], alone[:-1], strict=True)) > 0.1


def test_a_run_whose_loss_is_not_finite_ends_alone(first: Settings, here: World, tmp_path: Path) -> None:
    hopeless = replace(first, train=replace(first.train, seed=43, learning_rate=1e30, max_grad_norm=None))
    runs = [replace(first, train=replace(first.train, max_grad_norm=None)), hopeless]
    (expected,) = trained(runs[:1], tmp_path / "alone", here)
    folders = [RunDir(tmp_path / str(number)) for number in range(2)]
    train(list(zip(runs, folders, strict=True)), here)
    assert difference(load_file(folders[0].adapter / "adapter_model.safetensors"), expected) < TOLERANCE
    assert not folders[1].adapter.exists()
    assert len(losses(folders[1].root, "loss")) < STEPS // 10
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+: lower --train.learning-rate"):
        train([(hopeless, folders[1])], here)


# By default, two runs resume in the test of pairs for parts of a layer.
@pytest.mark.slow
def test_killed_in_the_middle_of_their_checkpoints_they_resume_to_the_same_bits(
    first: Settings, here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = others(first, 3)
    undisturbed = trained(runs, tmp_path / "undisturbed", here)
    moments, saved = TrainingStrategy.moments, []

    def killed(strategy: TrainingStrategy, number: int = 0) -> dict[str, Tensor]:
        saved.append(number)
        if len(saved) == 5:  # the second checkpoint of the second run
            raise KeyboardInterrupt
        return moments(strategy, number)

    monkeypatch.setattr(TrainingStrategy, "moments", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(runs, tmp_path / "killed", here)
    for ours, theirs in zip(trained(runs, tmp_path / "killed", here), undisturbed, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
def test_pairs_for_parts_of_a_layer_train_together_and_resume(
    kernels: ModuleType, first: Settings, here: World, tmp_path: Path
) -> None:
    lora = replace(first.lora, targets=("c_attn.q", "c_attn.v"), init="kaiming", rslora=True, rank=4)
    start = replace(first, lora=lora, train=replace(first.train, max_steps=10, checkpoint_steps=5))
    runs = [start, replace(start, train=replace(start.train, seed=43))]
    with graphs_on_a_cpu(kernels, shapes=4) if kernels is cuda else nullcontext():
        alone = [trained([run], tmp_path / f"alone{i}", here)[0] for i, run in enumerate(runs)]
        together = trained(runs, tmp_path / "together", here)
        for number in range(len(runs)):
            run = RunDir(tmp_path / "together" / str(number))
            for folder in (run.adapter, run.checkpoint(10)):
                shutil.rmtree(folder)
        resumed = trained(runs, tmp_path / "together", here)
    for ours, again, theirs in zip(together, resumed, alone, strict=True):
        assert difference(ours, theirs) < TOLERANCE
        assert difference(again, ours) == 0
    assert difference(*alone) > 0.1
