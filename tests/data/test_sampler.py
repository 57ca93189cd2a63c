import math
from itertools import combinations, groupby

import numpy as np
import pytest
import torch

from lora_dist.data.sampler import (
    Indices,
    assign_ranks,
    dev_batches,
    epoch_order,
    global_batch,
    group_order,
    grouped_micro_batches,
    micro_batches,
    training_order,
)


def arange(count: int) -> Indices:
    return np.arange(count, dtype=np.int64)


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch_only() -> None:
    orders = {(seed, epoch): epoch_order(97, seed, epoch).tolist() for seed in (0, 1, 42) for epoch in (0, 1, 2)}
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(epoch_order(97, *key).tolist() == order for key, order in orders.items())
    assert all(sorted(order) == list(range(97)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9


def test_epoch_order_is_the_one_of_earlier_runs() -> None:
    assert epoch_order(10, 42, 0).tolist() == [2, 4, 5, 0, 9, 8, 1, 7, 3, 6]
    assert epoch_order(10, 42, 1).tolist() == [7, 1, 4, 9, 8, 3, 5, 0, 2, 6]
    assert epoch_order(42061, 42, 4)[:5].tolist() == [956, 28938, 9733, 26374, 11411]


@pytest.mark.parametrize(("examples_count", "size"), [(16, 8), (17, 8), (5, 8), (42061, 8), (3, 1)])
def test_the_global_batches_of_an_epoch_hold_each_example_once(examples_count: int, size: int) -> None:
    order = epoch_order(examples_count, 42, 0)
    batches = [global_batch(order, position, size) for position in range(math.ceil(examples_count / size))]
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(examples_count))


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_the_ranks_shards_partition_a_batch_into_equal_numbers_of_examples(world: int, accumulation: int) -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 40)
    for count in range(18):
        batch = epoch_order(40, 0, 0)[:count]
        shards = [micro_batches(batch, lengths, rank, world, accumulation) for rank in range(world)]
        assert [len(shard) for shard in shards] == [accumulation] * world
        parts = [part for shard in shards for part in shard]
        assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
        assert max(map(len, parts)) <= math.ceil(count / (world * accumulation))
        sizes = [sum(map(len, shard)) for shard in shards]
        assert max(sizes) - min(sizes) <= 1


def test_ranks_get_equal_work() -> None:
    work = np.array([90, 20, 50, 80, 20, 40, 70, 30])
    first, second = (np.concatenate(micro_batches(arange(8), work, rank, 2, 2)) for rank in range(2))
    assert work[first].sum() == work[second].sum()
    assert work[first].tolist() == sorted(work[first], reverse=True)  # micro-batches of similar lengths


def test_the_work_of_two_ranks_is_close_to_the_best_of_all_ways_to_divide() -> None:
    work = np.sort(np.random.default_rng(0).integers(60, 240, (300, 8)))[:, ::-1]
    ranks = assign_ranks(work, 2)
    heavier = np.maximum(*((work * (ranks == rank)).sum(1) for rank in range(2)))
    halves = [list(half) for half in combinations(range(8), 4)]
    best = np.min([np.maximum(part := work[:, half].sum(1), work.sum(1) - part) for half in halves], axis=0)
    assert (ranks.sum(1) == 4).all()
    assert (heavier >= best).all()
    assert heavier.mean() < 1.005 * best.mean()


@pytest.mark.parametrize("refs_per_mr", [1, 2, 4, 100])
def test_examples_that_share_an_mr_are_neighbours_in_random_groups(refs_per_mr: int) -> None:
    draw = np.random.default_rng(3)
    mrs = draw.integers(0, 12, 97)
    order = group_order(epoch_order(97, 42, 0), mrs, refs_per_mr)
    assert sorted(order.tolist()) == list(range(97))
    groups = [list(group) for _, group in groupby(order.tolist(), key=lambda index: mrs[index])]
    for mr in range(12):
        own = [len(group) for group in groups if mrs[group[0]] == mr]
        assert sum(own) == (mrs == mr).sum()
        if refs_per_mr == 100:
            assert len(own) <= 1
    if refs_per_mr == 1:
        assert order.tolist() == epoch_order(97, 42, 0).tolist()
    else:
        assert len(order) / len(groups) > 0.7 * min(refs_per_mr, 97 / 12)
    other = group_order(epoch_order(97, 42, 1), mrs, refs_per_mr)
    assert order.tolist() != other.tolist()
    if refs_per_mr == 4:  # which examples form a group differs from epoch to epoch
        pairs = [
            frozenset(o[k : k + 2].tolist()) for o in (order, other) for k in range(96) if mrs[o[k]] == mrs[o[k + 1]]
        ]
        assert len(set(pairs)) > 0.8 * len(pairs)


@pytest.mark.parametrize("refs_per_mr", [1, 4])
def test_the_training_order_is_the_epochs_order_in_groups(refs_per_mr: int) -> None:
    mrs = np.random.default_rng(3).integers(0, 12, 97)
    expected = group_order(epoch_order(97, 7, 2), mrs, refs_per_mr)
    assert training_order(mrs, 7, 2, refs_per_mr).tolist() == expected.tolist()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_ranks_shards_of_a_batch_of_groups_split_as_few_groups_as_possible(world: int, accumulation: int) -> None:
    mrs = np.repeat(np.arange(10), 4)
    for count in range(25):
        batch = group_order(epoch_order(40, 0, 0), mrs, 4)[:count]
        shards = [grouped_micro_batches(batch, mrs, rank, world, accumulation) for rank in range(world)]
        assert [len(shard) for shard in shards] == [accumulation] * world
        parts = [part for shard in shards for part in shard]
        assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        pieces = sum(len(set(mrs[part])) for part in parts)
        assert pieces <= len(set(mrs[batch])) + len(parts) - 1


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 97])
def test_dev_batches_hold_each_example_once_and_are_equally_many_per_rank(count: int, world: int) -> None:
    lengths = np.random.default_rng(1).integers(2, 60, count)
    batches = dev_batches(lengths, 16, world)
    assert len(batches) % world == 0
    assert len(batches) - world < math.ceil(count / 16)
    assert max(map(len, batches)) <= 16
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    longest = [lengths[batch].max() for batch in batches if len(batch)]
    assert longest == sorted(longest, reverse=True)
