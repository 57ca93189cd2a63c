import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lora_dist.data.collate import Batch, SHAPE_STEP, collate
from lora_dist.data.e2e import Example
from lora_dist.data.sampler import Indices
from lora_dist.data.tokens import REFERENCE_TOKEN, TokenizedExamples, encode_prompts, tokenize
from lora_dist.errors import UserError

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
