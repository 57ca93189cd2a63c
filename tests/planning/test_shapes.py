"""The predicted largest micro-batch, compared with all micro-batches of the training."""

import numpy as np
import pytest

from lora_dist.config import TrainSettings
from lora_dist.data.collate import collate
from lora_dist.data.contents import training_shapes
from lora_dist.data.sampler import epoch_order, global_batch, micro_batches
from lora_dist.data.shapes import BatchShape
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.model.kernels import cpu, cuda
from lora_dist.model.kernels.select import Kernels
from lora_dist.planning.shapes import _largest


@pytest.mark.parametrize(
    ("cfg", "processes"),
    [
        (TrainSettings(epochs=3), 1),
        (TrainSettings(epochs=3, accumulation_steps=2), 2),
        (TrainSettings(epochs=3, global_batch_size=12), 3),
        (TrainSettings(max_steps=7), 4),  # ends before the second epoch does
        (TrainSettings(global_batch_size=64), 2),  # more than the corpus has
    ],
)
@pytest.mark.parametrize("kernels", [cpu, cuda], ids=["cpu", "cuda"])
def test_the_largest_micro_batch_is_the_largest_of_all(cfg: TrainSettings, processes: int, kernels: Kernels) -> None:
    lengths = np.random.default_rng(1).integers(9, 99, 43)
    starts, mrs = np.cumsum([0, *lengths]), np.arange(len(lengths))
    train = TokenizedExamples(np.zeros(lengths.sum(), np.int32), starts, lengths // 3, mrs)

    def size(shape: BatchShape) -> int:
        return shape.tokens + shape.rows * shape.length**2 + 3 * shape.outputs

    shapes = training_shapes(train, cfg, processes, kernels.SHAPE_STEP, kernels.STATIC_SHAPES)
    met: list[BatchShape] = []
    per_epoch = cfg.steps_per_epoch(len(train))
    for step in range(cfg.total_steps(len(train))):
        order = epoch_order(len(train), cfg.seed, step // per_epoch)
        ids = global_batch(order, step % per_epoch, cfg.global_batch_size)
        for rank in range(processes):
            for part in micro_batches(ids, train.work, rank, processes, cfg.accumulation_steps):
                met.append(collate(train, part, 0, shapes).shape)
    largest = _largest(train, cfg, processes, kernels, size)
    assert largest in met
    assert size(largest) == max(map(size, met))
