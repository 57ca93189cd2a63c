import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lora_dist.data.collate import Batch, BatchShape, batch_shape, collate
from lora_dist.data.e2e import Example
from lora_dist.data.sampler import Indices
from lora_dist.data.tokens import REFERENCE_TOKEN, TokenizedExamples, tokenize
from lora_dist.model.kernels.cpu import SHAPE_STEP
from lora_dist.training.loss import ReferenceLoss

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


def example_rows(batch: Batch, examples: TokenizedExamples, indices: Indices) -> Iterator[tuple[int, slice]]:
    """Each example's index and its place among the batch's tokens."""
    ends = np.cumsum(examples.lengths[indices] - 1)
    for index, end in zip(indices, ends, strict=True):
        yield index, slice(end - examples.lengths[index] + 1, end)


@pytest.mark.parametrize("pad", ["eos", "other"])
def test_labels_are_the_reference_and_end_of_text_whatever_the_padding(
    tokenizer: Any, examples: TokenizedExamples, pad: str
) -> None:
    eos = tokenizer.eos_token_id
    batch = collate(examples, arange(4), eos if pad == "eos" else 7, SHAPE_STEP)
    assert len(batch.labels) == examples.label_counts.sum()
    predicting, start = batch.loss_index[: len(batch.labels)], 0
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
    batch = collate(examples, np.array(indices), 0, SHAPE_STEP)
    for number, (index, place) in enumerate(example_rows(batch, examples, np.array(indices))):
        assert batch.tokens[place].tolist() == row(examples, index)[:-1]
        assert batch.positions[place].tolist() == list(range(len(row(examples, index)) - 1))
        assert batch.pad_index[place].tolist() == [
            number * batch.length + k for k in range(len(row(examples, index)) - 1)
        ]
    labels = [token for index in indices for token in row(examples, index)[examples.prompt_lengths[index] :]]
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("indices", [[3, 0], [0], [2, 2, 2, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("multiple", [SHAPE_STEP, 1, 5])
def test_a_batch_is_padded_to_few_shapes_behind_the_ends_of_its_examples(
    examples: TokenizedExamples, indices: list[int], multiple: int
) -> None:
    batch = collate(examples, np.array(indices), 9, multiple)
    real = int(examples.lengths[indices].sum()) - len(indices)
    padded = math.ceil(real / multiple) * multiple
    assert len(batch.tokens) == len(batch.positions) == len(batch.pad_index) == padded
    assert (batch.tokens[real:] == 9).all()
    assert batch.length % multiple == 0
    assert batch.pad_index.max() < batch.rows * batch.length
    for index in (batch.pad_index, batch.loss_index):
        assert len(set(index.tolist())) == len(index)
    # Padding comes after the end of an example, where a causal model never attends to it.
    for place in batch.pad_index[real:].tolist():
        assert place % batch.length >= examples.lengths[indices[place // batch.length]] - 1
    predicting = set(batch.loss_index[: len(batch.labels)].tolist())
    assert predicting.isdisjoint(batch.loss_index[len(batch.labels) :].tolist())
    assert len(batch.loss_index) % multiple == 0 or len(batch.loss_index) == real


def test_a_batch_moves_to_a_device_with_all_its_tensors(examples: TokenizedExamples) -> None:
    moved = collate(examples, np.array([3, 0]), 0, SHAPE_STEP).to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {part.device.type for part in moved.named().values() if isinstance(part, torch.Tensor)} == {"meta"}


def test_a_batch_without_examples_is_one_token_without_labels(examples: TokenizedExamples) -> None:
    batch = collate(examples, arange(0), 9, SHAPE_STEP)
    assert (batch.tokens.tolist(), batch.positions.tolist(), batch.pad_index.tolist()) == ([9], [0], [0])
    assert (batch.loss_index.tolist(), batch.labels.tolist()) == ([], [])
    assert (batch.loss_index.dtype, batch.labels.dtype) == (torch.int64, torch.int64)


def test_a_row_of_shared_mrs_is_the_mr_and_then_each_reference_token_and_reference(
    examples: TokenizedExamples,
) -> None:
    batch = collate(examples, np.array([0, 2, 1]), 0, SHAPE_STEP, share_mrs=True)
    assert batch.rows == 2
    assert batch.segments is not None
    first, second, prompt = row(examples, 0), row(examples, 2), int(examples.prompt_lengths[0])
    together = [*first[:-1], *second[prompt - 1 : -1]]
    assert batch.tokens[: len(together)].tolist() == together
    assert batch.positions[: len(together)].tolist() == [*range(len(first) - 1), *range(prompt - 1, len(second) - 1)]
    of_mr, of_first = prompt - 1, len(first) - prompt
    assert batch.segments[0, : len(together)].tolist() == [0] * of_mr + [1] * of_first + [2] * (len(second) - prompt)
    labels = [row(examples, index)[examples.prompt_lengths[index] :] for index in (0, 2, 1)]
    assert batch.labels.tolist() == [label for some in labels for label in some]
    apart = collate(examples, np.array([0, 1, 2]), 0, SHAPE_STEP, share_mrs=True)
    assert apart.segments is None  # no neighbours of one MR


def test_a_batchs_fields_by_name_are_the_arguments_of_the_loss(examples: TokenizedExamples) -> None:
    batch = collate(examples, np.array([0, 2]), 0, SHAPE_STEP)
    named = batch.named()
    parameters = inspect.signature(ReferenceLoss.forward).parameters.values()
    assert list(named) == [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert all(value is getattr(batch, name) for name, value in named.items())


@pytest.mark.parametrize("indices", [[0], [3, 0, 1, 2], [1, 1]])
def test_batch_shape_is_the_shape_of_the_batch(examples: TokenizedExamples, indices: list[int]) -> None:
    batch = collate(examples, np.array(indices), 0, SHAPE_STEP)
    lengths, labels = examples.lengths[indices] - 1, examples.label_counts[indices]
    found = batch_shape(len(indices), int(lengths.sum()), int(lengths.max()), int(labels.sum()), SHAPE_STEP)
    sizes = len(batch.tokens), batch.rows, batch.length, len(batch.loss_index), len(batch.labels)
    assert found == BatchShape(*sizes)
