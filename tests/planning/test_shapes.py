"""The largest micro-batch to come, against all micro-batches that come."""

import numpy as np
import pytest

from lora_dist.config import TrainSettings
from lora_dist.data.collate import BatchShape, collate
from lora_dist.data.sampler import epoch_order, global_batch, micro_batches
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.planning.shapes import _largest


@pytest.mark.parametrize(
    ("recipe", "processes"),
    [
        (TrainSettings(epochs=3), 1),
        (TrainSettings(epochs=3, accumulation_steps=2), 2),
        (TrainSettings(epochs=3, global_batch_size=12), 3),
        (TrainSettings(max_steps=7), 4),  # not the second epoch's end
        (TrainSettings(global_batch_size=64), 2),  # more than there are
    ],
)
def test_the_largest_micro_batch_is_the_largest_of_all(recipe: TrainSettings, processes: int) -> None:
    lengths = np.random.default_rng(1).integers(9, 99, 43)
    starts, mrs = np.cumsum([0, *lengths]), np.arange(len(lengths))
    train = TokenizedExamples(np.zeros(lengths.sum(), np.int32), starts, lengths // 3, mrs)

    def size(shape: BatchShape) -> int:
        return shape.tokens + shape.rows * shape.length**2 + 3 * shape.wanted

    met: list[BatchShape] = []
    per_epoch = recipe.steps_per_epoch(len(train))
    for update in range(recipe.total_steps(len(train))):
        order = epoch_order(len(train), recipe.seed, update // per_epoch)
        ids = global_batch(order, update % per_epoch, recipe.global_batch_size)
        for rank in range(processes):
            for share in micro_batches(ids, train.work, rank, processes, recipe.accumulation_steps):
                batch = collate(train, share, pad_id=0)
                counts = len(batch.tokens), batch.rows, batch.length, len(batch.wanted), len(batch.labels)
                met.append(BatchShape(*counts))
    largest = _largest(train, recipe, processes, size)
    assert largest in met
    assert size(largest) == max(map(size, met))
