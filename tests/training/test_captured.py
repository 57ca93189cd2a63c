"""Captured trainings compared with eager ones, with a stand-in for the graphs, as no CPU has any."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from launching import complete_checkpoints
from recorded_graph import RecordedGraphs, graphs_on_a_cpu
from small_training import small_training

from lora_dist.cli.main import main
from lora_dist.config import Settings, TrainSettings
from lora_dist.data.collate import Batch
from lora_dist.data.shapes import BatchShape
from lora_dist.model.kernels import cpu, cuda
from lora_dist.run_dir import RunDir
from lora_dist.training.captured import CapturedLoss, why_eager
from lora_dist.training.strategy import TrainingStrategy
from lora_dist.training.trainer import Trainer

SHAPES = 4
STEPS, EVERY = 22, 6


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """22 steps with dropout, two epochs of 11 whose last batch is smaller, on short examples."""
    changed: dict[str, object] = {
        "--data.limit-train": 32,
        "--train.global-batch-size": 3,
        "--train.max-grad-norm": 0.5,
        "--train.checkpoint-steps": EVERY,
    }
    return small_training(tiny_gpt2, tmp_path_factory.mktemp("captured") / "corpus", changed)


def train(folder: Path, arguments: list[str], *others: str) -> RunDir:
    run = RunDir(folder)
    assert main([*arguments, *others, "--out", str(folder)]) == 0
    return run


@pytest.fixture(scope="module")
def eager(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The training with the shapes of a captured one, but without graphs."""
    with graphs_on_a_cpu(shapes=SHAPES):
        return train(tmp_path_factory.mktemp("eager") / "run", arguments, "--train.cuda-graphs", "off")


def outcome(run: RunDir) -> tuple[bytes, list[float]]:
    """The adapter's file and all losses."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [row[key] for row in rows for key in ("loss", "dev_loss") if key in row]
    assert len(losses) == STEPS + 2
    return (run.adapter / "adapter_model.safetensors").read_bytes(), losses


@pytest.fixture
def messages() -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What the package logs in this test about graphs: levels and messages."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("lora_dist")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [(r.levelname, r.getMessage()) for r in records if "CUDA graphs" in r.getMessage()]
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.mark.parametrize(
    ("precision", "accumulation", "kernels"),
    [("no", 3, cpu), ("bf16", 1, cuda)],
    ids=["fp32 accumulated cpu", "bf16 cuda"],
)
def test_captured_steps_give_the_bits_of_eager_ones_also_when_resumed(
    precision: str,
    accumulation: int,
    kernels: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    settings = [*arguments, "--train.accumulation-steps", str(accumulation)]
    with graphs_on_a_cpu(kernels, shapes=SHAPES) as recorders:
        eager = train(tmp_path / "eager", settings, "--train.cuda-graphs", "off")
        assert recorders[0].recorded == []
        captured = train(tmp_path / "captured", settings)
        assert outcome(captured) == outcome(eager)
        assert len(recorders[1].replayed) == STEPS * accumulation
        cut_short(captured)
        train(captured.root, settings, "--resume")
        assert outcome(captured) == outcome(eager)
        assert len(recorders[2].replayed) == (STEPS - EVERY) * accumulation
        assert [recorder.released for recorder in recorders[1:]] == [1, 1]


def cut_short(run: RunDir) -> None:
    """Leave what a kill after the first checkpoint would leave."""
    shutil.rmtree(run.adapter)
    for step in complete_checkpoints(run)[1:]:
        (run.checkpoint(step) / "COMPLETE").unlink()


def test_each_shape_is_captured_once_the_largest_first_and_each_micro_batch_replays_its_own(
    arguments: list[str], eager: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[BatchShape] = []
    met: list[BatchShape] = []
    capture, backward = CapturedLoss.capture, TrainingStrategy.backward

    def capture_watched(loss: CapturedLoss, batches: list[Batch], recorder: RecordedGraphs, **how: Any) -> None:
        offered.extend(batch.shape for batch in batches)
        capture(loss, batches, recorder, **how)

    def backward_watched(strategy: TrainingStrategy, batch: Batch, **how: Any) -> torch.Tensor:
        met.append(batch.shape)
        return backward(strategy, batch, **how)

    monkeypatch.setattr(CapturedLoss, "capture", capture_watched)
    monkeypatch.setattr(TrainingStrategy, "backward", backward_watched)
    with graphs_on_a_cpu(shapes=SHAPES) as recorders:
        captured = train(tmp_path / "run", arguments)
    (recorder,) = recorders
    assert outcome(captured) == outcome(eager)
    assert len(offered) == len(set(offered)) == SHAPES
    assert [shape.work for shape in offered] == sorted((shape.work for shape in offered), reverse=True)
    of_graph = dict(zip(map(id, recorder.recorded), offered, strict=True))
    assert [of_graph[id(graph)] for graph in recorder.replayed] == met
    assert set(met) == set(offered)
    assert len(met) == STEPS


class Failing(RecordedGraphs):
    """Fails in a recording, and once more at its end, as a real capture does."""

    def __init__(self, error: Exception, number: int) -> None:
        super().__init__()
        self._error, self._number = error, number

    def record(self, run: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        if len(self.recorded) + 1 < self._number:
            return super().record(run)
        try:
            run()
            raise self._error
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"), 3),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), 1),
    ],
    ids=["memory", "operator"],
)
def test_a_capture_that_fails_leaves_an_eager_training_with_one_warning_that_names_the_reason(
    error: Exception,
    number: int,
    arguments: list[str],
    eager: RunDir,
    tmp_path: Path,
    messages: Callable[[], list[tuple[str, str]]],
) -> None:
    with graphs_on_a_cpu(recorder=lambda: Failing(error, number), shapes=SHAPES) as recorders:
        fallen_back = train(tmp_path / "run", arguments)
    assert outcome(fallen_back) == outcome(eager)
    assert recorders[0].replayed == []
    assert recorders[0].released >= 1
    assert messages() == [("WARNING", f"steps run eagerly, as capturing CUDA graphs failed: {error}")]


EAGER = [
    (TrainSettings(cuda_graphs="off"), 0, False, "--train.cuda-graphs is off"),
    (TrainSettings(), 3, False, "ZeRO-3 gathers the weights from Python"),
    (TrainSettings(), 2, True, "the optimizer state is offloaded"),
    (TrainSettings(gradient_checkpointing=True), 1, False, "--train.gradient-checkpointing is on"),
    (TrainSettings(refs_per_mr=2), 0, False, "--train.refs-per-mr is above 1"),
]


@pytest.mark.parametrize(("cfg", "stage", "offload", "reason"), EAGER, ids=[reason for *_, reason in EAGER])
def test_what_cannot_be_captured_is_said_once(
    cfg: TrainSettings, stage: int, offload: bool, reason: str, messages: Callable[[], list[tuple[str, str]]]
) -> None:
    assert why_eager(cfg, stage, offload=offload) == reason
    world = SimpleNamespace(device=torch.device("cpu"), zero_stage=stage, offload=offload)
    trainer = SimpleNamespace(world=world, settings=Settings(train=cfg))  # neither a module to capture nor shapes
    with graphs_on_a_cpu():
        Trainer._capture(cast(Trainer, trainer))
    assert messages() == [("INFO", f"steps run eagerly, without CUDA graphs: {reason}")]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_process_ddp_and_the_first_stages_of_zero_are_captured(stage: int) -> None:
    assert why_eager(TrainSettings(accumulation_steps=2, max_grad_norm=1.0), stage, offload=False) is None


def test_without_graphs_nothing_is_said(messages: Callable[[], list[tuple[str, str]]]) -> None:
    world = SimpleNamespace(device=torch.device("cpu"))
    Trainer._capture(cast(Trainer, SimpleNamespace(world=world)))
    assert messages() == []
