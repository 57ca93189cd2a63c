import math
from collections.abc import Iterator
from itertools import combinations, groupby
from typing import Any

import numpy as np
import pytest
import torch

from lora_dist.batches import (
    REFERENCE_TOKEN,
    SHAPE_STEP,
    Batch,
    Indices,
    TokenizedExamples,
    collate,
    deal,
    dev_batches,
    encode_prompts,
    epoch_order,
    global_batch,
    rank_share,
    shared_order,
    shared_rank_share,
    tokenize,
)
from lora_dist.config import UserError
from lora_dist.e2e import Example

EXAMPLES = [
    Example("name[The Eagle], food[French]", "The Eagle is French."),
    Example("name[Blue Spice], customer rating[5 out of 5]", "Blue Spice is rated 5 out of 5, at £20 in Café Rouge."),
    Example("name[The Eagle], food[French]", " The Eagle  serves French food. "),
    Example("name[X]", "X."),
]


@pytest.fixture
def examples(tokenizer: Any) -> TokenizedExamples:
    return tokenize(tokenizer, EXAMPLES, max_length=128)


def row(examples: TokenizedExamples, index: int) -> list[int]:
    found: list[int] = examples.ids[examples.starts[index] : examples.starts[index + 1]].tolist()
    return found


def arange(count: int) -> Indices:
    return np.arange(count, dtype=np.int64)


# Text to tokens


def test_an_example_is_mr_reference_token_reference_end(tokenizer: Any, examples: TokenizedExamples) -> None:
    assert len(examples) == len(EXAMPLES)
    for index, example in enumerate(EXAMPLES):
        text = f"{example.mr} {REFERENCE_TOKEN} {example.reference.strip()}"
        assert row(examples, index) == [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        tokens = tokenizer.convert_ids_to_tokens(row(examples, index))
        before, after = (tokens[tokens.index(REFERENCE_TOKEN) + step] for step in (-1, 1))
        assert before.endswith("]")  # the space between them belongs to the reference token
        assert after.startswith("Ġ")


def test_the_prompt_of_decoding_is_what_training_puts_before_a_reference(
    tokenizer: Any, examples: TokenizedExamples
) -> None:
    prompts = encode_prompts(tokenizer, [example.mr for example in EXAMPLES])
    assert encode_prompts(tokenizer, []) == []
    for index, prompt in enumerate(prompts):
        assert row(examples, index)[: examples.prompt_lengths[index]] == prompt
        assert prompt[-1] == tokenizer.convert_tokens_to_ids(REFERENCE_TOKEN)


def test_lengths_and_label_counts(examples: TokenizedExamples) -> None:
    lengths = [len(row(examples, index)) for index in range(len(EXAMPLES))]
    assert examples.lengths.tolist() == lengths
    assert (examples.label_counts + examples.prompt_lengths).tolist() == lengths
    assert examples.label_counts.min() >= 2  # X. and the end


def test_the_longest_example_fits_exactly_and_one_token_less_is_refused(
    tokenizer: Any, examples: TokenizedExamples
) -> None:
    longest = int(examples.lengths.max())
    assert len(tokenize(tokenizer, EXAMPLES, longest)) == len(EXAMPLES)
    with pytest.raises(UserError, match=rf"has {longest} tokens, the model takes {longest - 1}: .*Blue Spice"):
        tokenize(tokenizer, EXAMPLES, longest - 1)


# Tokens to tensors


def example_rows(batch: Batch, examples: TokenizedExamples, indices: Indices) -> Iterator[tuple[int, slice]]:
    """Each example's index and its place among the batch's tokens."""
    ends = np.cumsum(examples.lengths[indices] - 1)
    for index, end in zip(indices, ends, strict=True):
        yield index, slice(end - examples.lengths[index] + 1, end)


@pytest.mark.parametrize("pad", ["eos", "other"])
def test_labels_are_the_reference_and_the_end_whatever_fills_up(
    tokenizer: Any, examples: TokenizedExamples, pad: str
) -> None:
    eos = tokenizer.eos_token_id
    batch = collate(examples, arange(4), pad_id=eos if pad == "eos" else 7)
    assert len(batch.labels) == examples.label_counts.sum()
    predicting, start = batch.wanted[: len(batch.labels)], 0
    for index, place in example_rows(batch, examples, arange(4)):
        mine = (predicting >= place.start) & (predicting < place.stop)
        labels = batch.labels[mine].tolist()
        assert labels == batch.labels[start : start + len(labels)].tolist()
        start += len(labels)
        assert labels[-1] == eos
        assert labels.count(eos) == 1
        assert tokenizer.decode(labels[:-1]) == " " + EXAMPLES[index].reference.strip()
        # Each label is the token after the one that predicts it.
        assert batch.tokens[predicting[mine]][1:].tolist() == labels[:-1]
        assert tokenizer.decode(batch.tokens[predicting[mine]][0]) == REFERENCE_TOKEN
    assert start == len(batch.labels)


@pytest.mark.parametrize("indices", [[3, 0], [0], [1, 1, 2], [0, 1, 2, 3]])
def test_a_batch_lays_its_examples_end_to_end_in_order(examples: TokenizedExamples, indices: list[int]) -> None:
    batch = collate(examples, np.array(indices), pad_id=0)
    for number, (index, place) in enumerate(example_rows(batch, examples, np.array(indices))):
        assert batch.tokens[place].tolist() == row(examples, index)[:-1]
        assert batch.positions[place].tolist() == list(range(len(row(examples, index)) - 1))
        assert batch.slots[place].tolist() == [number * batch.length + k for k in range(len(row(examples, index)) - 1)]
    labels = [token for index in indices for token in row(examples, index)[examples.prompt_lengths[index] :]]
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("indices", [[3, 0], [0], [2, 2, 2, 2], [0, 1, 2, 3]])
def test_a_batch_is_filled_up_to_few_shapes_without_touching_an_example(
    examples: TokenizedExamples, indices: list[int]
) -> None:
    batch = collate(examples, np.array(indices), pad_id=9)
    real = int(examples.lengths[indices].sum()) - len(indices)
    assert len(batch.tokens) == len(batch.positions) == len(batch.slots) == math.ceil(real / SHAPE_STEP) * SHAPE_STEP
    assert (batch.tokens[real:] == 9).all()
    assert batch.length % SHAPE_STEP == 0
    assert batch.slots.max() < batch.rows * batch.length
    for slots in (batch.slots, batch.wanted):
        assert len(set(slots.tolist())) == len(slots)
    # What fills up stands behind an example's end, where a causal model never looks back at it.
    for slot in batch.slots[real:].tolist():
        assert slot % batch.length >= examples.lengths[indices[slot // batch.length]] - 1
    predicting = set(batch.wanted[: len(batch.labels)].tolist())
    assert predicting.isdisjoint(batch.wanted[len(batch.labels) :].tolist())
    assert len(batch.wanted) % SHAPE_STEP == 0 or len(batch.wanted) == real


def test_a_batch_moves_whole(examples: TokenizedExamples) -> None:
    moved = collate(examples, np.array([3, 0]), pad_id=0).to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {part.device.type for part in moved.inputs() if isinstance(part, torch.Tensor)} == {"meta"}


def test_an_empty_share_is_one_token_without_labels(examples: TokenizedExamples) -> None:
    batch = collate(examples, arange(0), pad_id=9)
    assert (batch.tokens.tolist(), batch.positions.tolist(), batch.slots.tolist()) == ([9], [0], [0])
    assert (batch.wanted.tolist(), batch.labels.tolist()) == ([], [])
    assert (batch.wanted.dtype, batch.labels.dtype) == (torch.int64, torch.int64)


# The order, and each rank's share of it


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
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
def test_ranks_share_a_batch_without_gap_or_overlap_and_never_above_the_fair_share(
    world: int, accumulation: int
) -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 40)
    for count in range(18):
        batch = epoch_order(40, 0, 0)[:count]
        shares = [rank_share(batch, lengths, rank, world, accumulation) for rank in range(world)]
        assert [len(share) for share in shares] == [accumulation] * world
        parts = [part for share in shares for part in share]
        assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
        assert max(map(len, parts)) <= math.ceil(count / (world * accumulation))
        sizes = [sum(map(len, share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_ranks_get_equal_work() -> None:
    work = np.array([90, 20, 50, 80, 20, 40, 70, 30])
    first, second = (np.concatenate(rank_share(arange(8), work, rank, 2, 2)) for rank in range(2))
    assert work[first].sum() == work[second].sum()
    assert work[first].tolist() == sorted(work[first], reverse=True)  # micro-batches of like length


def test_exchanges_bring_two_ranks_close_to_the_best_of_all_ways_to_divide() -> None:
    work = np.sort(np.random.default_rng(0).integers(60, 240, (300, 8)))[:, ::-1]
    ranks = deal(work, 2)
    heavier = np.maximum(*((work * (ranks == rank)).sum(1) for rank in range(2)))
    halves = [list(half) for half in combinations(range(8), 4)]
    best = np.min([np.maximum(part := work[:, half].sum(1), work.sum(1) - part) for half in halves], axis=0)
    assert (ranks.sum(1) == 4).all()
    assert (heavier >= best).all()
    assert heavier.mean() < 1.005 * best.mean()


@pytest.mark.parametrize("refs_per_mr", [1, 2, 4, 100])
def test_examples_that_share_an_mr_stand_together_in_random_groups(refs_per_mr: int) -> None:
    draw = np.random.default_rng(3)
    mrs = draw.integers(0, 12, 97)
    order = shared_order(epoch_order(97, 42, 0), mrs, refs_per_mr)
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
    other = shared_order(epoch_order(97, 42, 1), mrs, refs_per_mr)
    assert order.tolist() != other.tolist()
    if refs_per_mr == 4:  # which examples form a group differs from epoch to epoch
        pairs = [
            frozenset(o[k : k + 2].tolist()) for o in (order, other) for k in range(96) if mrs[o[k]] == mrs[o[k + 1]]
        ]
        assert len(set(pairs)) > 0.8 * len(pairs)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_a_batch_of_groups_and_split_as_few_as_they_must(world: int, accumulation: int) -> None:
    mrs = np.repeat(np.arange(10), 4)
    for count in range(25):
        batch = shared_order(epoch_order(40, 0, 0), mrs, 4)[:count]
        shares = [shared_rank_share(batch, mrs, rank, world, accumulation) for rank in range(world)]
        assert [len(share) for share in shares] == [accumulation] * world
        parts = [part for share in shares for part in share]
        assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        pieces = sum(len(set(mrs[part])) for part in parts)
        assert pieces <= len(set(mrs[batch])) + len(parts) - 1


def test_a_row_of_sharers_is_the_mr_and_then_each_reference_token_and_reference(examples: TokenizedExamples) -> None:
    batch = collate(examples, np.array([0, 2, 1]), 0, share=True)
    assert batch.rows == 2
    assert batch.sharers is not None
    first, second, prompt = row(examples, 0), row(examples, 2), int(examples.prompt_lengths[0])
    together = [*first[:-1], *second[prompt - 1 : -1]]
    assert batch.tokens[: len(together)].tolist() == together
    assert batch.positions[: len(together)].tolist() == [*range(len(first) - 1), *range(prompt - 1, len(second) - 1)]
    of_mr, of_first = prompt - 1, len(first) - prompt
    assert batch.sharers[0, : len(together)].tolist() == [0] * of_mr + [1] * of_first + [2] * (len(second) - prompt)
    labels = [row(examples, index)[examples.prompt_lengths[index] :] for index in (0, 2, 1)]
    assert batch.labels.tolist() == [label for some in labels for label in some]
    assert collate(examples, np.array([0, 1, 2]), 0, share=True).sharers is None  # no neighbours of one MR


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 97])
def test_dev_batches_hold_each_example_once_and_as_many_for_each_rank(count: int, world: int) -> None:
    lengths = np.random.default_rng(1).integers(2, 60, count)
    batches = dev_batches(lengths, 16, world)
    assert len(batches) % world == 0
    assert len(batches) - world < math.ceil(count / 16)
    assert max(map(len, batches)) <= 16
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    longest = [lengths[batch].max() for batch in batches if len(batch)]
    assert longest == sorted(longest, reverse=True)
