import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lora_dist.data.collate import IGNORE, INDICES, Batch, collate, padding_batch
from lora_dist.data.e2e import Example
from lora_dist.data.sampler import Indices
from lora_dist.data.shapes import SMALLEST, BatchShape, Contents, RoundedShapes, Shapes, StaticShapes
from lora_dist.data.tokens import REFERENCE_TOKEN, TokenizedExamples, tokenize
from lora_dist.model.kernels.cpu import SHAPE_STEP

FINE = RoundedShapes(SHAPE_STEP)
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
    batch = collate(examples, arange(4), eos if pad == "eos" else 7, FINE)
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
    batch = collate(examples, np.array(indices), 0, FINE)
    for number, (index, place) in enumerate(example_rows(batch, examples, np.array(indices))):
        assert batch.tokens[place].tolist() == row(examples, index)[:-1]
        assert batch.positions[place].tolist() == list(range(len(row(examples, index)) - 1))
        assert batch.pad_index[place].tolist() == [
            number * batch.shape.length + k for k in range(len(row(examples, index)) - 1)
        ]
    labels = [token for index in indices for token in row(examples, index)[examples.prompt_lengths[index] :]]
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("indices", [[3, 0], [0], [2, 2, 2, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("multiple", [SHAPE_STEP, 1, 5])
def test_a_batch_is_padded_to_few_shapes_behind_the_ends_of_its_examples(
    examples: TokenizedExamples, indices: list[int], multiple: int
) -> None:
    batch = collate(examples, np.array(indices), 9, RoundedShapes(multiple))
    real = int(examples.lengths[indices].sum()) - len(indices)
    padded = math.ceil(real / multiple) * multiple
    assert len(batch.tokens) == len(batch.positions) == len(batch.pad_index) == padded
    assert (batch.tokens[real:] == 9).all()
    assert batch.shape.length % multiple == 0
    assert batch.pad_index.max() < batch.shape.rows * batch.shape.length
    for index in (batch.pad_index, batch.loss_index):
        assert len(set(index.tolist())) == len(index)
    # Padding comes after the end of an example, where a causal model never attends to it.
    for place in batch.pad_index[real:].tolist():
        assert place % batch.shape.length >= examples.lengths[indices[place // batch.shape.length]] - 1
    predicting = set(batch.loss_index[: len(batch.labels)].tolist())
    assert predicting.isdisjoint(batch.loss_index[len(batch.labels) :].tolist())
    assert len(batch.loss_index) % multiple == 0 or len(batch.loss_index) == real


def test_a_batch_moves_to_a_device_with_all_its_tensors(examples: TokenizedExamples) -> None:
    moved = collate(examples, np.array([3, 0]), 0, FINE).to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {part.device.type for part in vars(moved).values() if isinstance(part, torch.Tensor)} == {"meta"}
    shared = collate(examples, np.array([0, 2, 1]), 0, FINE, share_mrs=True).to(torch.device("meta"))
    assert shared.segments is not None
    assert shared.segments.device.type == "meta"


@pytest.mark.parametrize("shape", [SMALLEST, BatchShape(tokens=7, rows=2, length=5, outputs=3, labels=4)])
def test_a_batch_without_examples_is_padding_without_labels(examples: TokenizedExamples, shape: BatchShape) -> None:
    batch = padding_batch(examples, 9, shape)
    assert batch.shape == shape
    assert (batch.tokens.tolist(), batch.positions.tolist()) == ([9] * shape.tokens, [0] * shape.tokens)
    assert (batch.pad_index.tolist(), batch.loss_index.tolist()) == ([*range(shape.tokens)], [*range(shape.outputs)])
    assert batch.labels.tolist() == [IGNORE] * shape.labels
    assert {part.dtype for part in vars(batch).values() if isinstance(part, torch.Tensor)} == {torch.int64}
    assert collate(examples, arange(0), 9, FINE).labels.tolist() == []


def test_a_row_of_shared_mrs_is_the_mr_and_then_each_reference_token_and_reference(
    examples: TokenizedExamples,
) -> None:
    batch = collate(examples, np.array([0, 2, 1]), 0, FINE, share_mrs=True)
    assert batch.shape.rows == 2
    assert batch.segments is not None
    first, second, prompt = row(examples, 0), row(examples, 2), int(examples.prompt_lengths[0])
    together = [*first[:-1], *second[prompt - 1 : -1]]
    assert batch.tokens[: len(together)].tolist() == together
    assert batch.positions[: len(together)].tolist() == [*range(len(first) - 1), *range(prompt - 1, len(second) - 1)]
    of_mr, of_first = prompt - 1, len(first) - prompt
    assert batch.segments[0, : len(together)].tolist() == [0] * of_mr + [1] * of_first + [2] * (len(second) - prompt)
    labels = [row(examples, index)[examples.prompt_lengths[index] :] for index in (0, 2, 1)]
    assert batch.labels.tolist() == [label for some in labels for label in some]
    apart = collate(examples, np.array([0, 1, 2]), 0, FINE, share_mrs=True)
    assert apart.segments is None  # no neighbours of one MR


@pytest.mark.parametrize("indices", [[0], [3, 0, 1, 2], [1, 1], []])
def test_a_batch_has_the_shape_that_fits_its_contents(examples: TokenizedExamples, indices: list[int]) -> None:
    some = np.array(indices, dtype=np.int64)
    lengths, labels = examples.lengths[some] - 1, examples.label_counts[some]
    contents = Contents(len(indices), int(lengths.sum()), int(lengths.max(initial=0)), int(labels.sum()))
    for shapes in (FINE, StaticShapes((BatchShape(500, 5, 128, 300, 200),))):
        batch = collate(examples, some, 0, shapes)
        assert batch.shape == shapes.fit(contents)
        assert len(batch.tokens) == len(batch.positions) == len(batch.pad_index) == batch.shape.tokens
        assert (len(batch.loss_index), len(batch.labels)) == (batch.shape.outputs, batch.shape.labels)
        assert (len(batch.pad_inverse), len(batch.loss_inverse)) == (
            batch.shape.rows * batch.shape.length,
            batch.shape.tokens,
        )


@pytest.mark.parametrize("indices", [[0], [3, 0, 1, 2], [1, 1]])
def test_a_larger_static_shape_leaves_the_contents_of_a_batch_as_they_are(
    examples: TokenizedExamples, indices: list[int]
) -> None:
    exact = collate(examples, np.array(indices), 9, RoundedShapes(1))
    own = exact.shape
    larger = BatchShape(own.tokens + 23, own.rows + 2, own.length + 9, own.outputs + 12, own.labels + 5)
    batch = collate(examples, np.array(indices), 9, StaticShapes((larger,)))
    assert batch.shape == larger
    for name in ("tokens", "positions", "loss_index", "labels"):
        theirs = getattr(exact, name)
        assert torch.equal(getattr(batch, name)[: len(theirs)], theirs), name
    places = batch.pad_index[: own.tokens]
    assert torch.equal(places // larger.length, exact.pad_index // own.length)
    assert torch.equal(places % larger.length, exact.pad_index % own.length)
    assert (batch.tokens[own.tokens :] == 9).all()
    assert (batch.labels[own.labels :] == IGNORE).all()
    # Padding comes after the end of an example or in a row of its own, where no example attends to it.
    for place in batch.pad_index[own.tokens :].tolist():
        in_row, column = divmod(place, larger.length)
        assert in_row >= own.rows or column >= examples.lengths[indices[in_row]] - 1


@pytest.mark.parametrize("shapes", [FINE, RoundedShapes(1), StaticShapes((BatchShape(300, 6, 99, 200, 200),))])
def test_the_inverses_invert_and_mark_what_is_absent(examples: TokenizedExamples, shapes: Shapes) -> None:
    batch = collate(examples, np.array([3, 0, 2, 1]), 9, shapes)
    for index, inverse in ((batch.pad_index, batch.pad_inverse), (batch.loss_index, batch.loss_inverse)):
        assert torch.equal(inverse[index], torch.arange(len(index)))
        assert int((inverse == -1).sum()) == len(inverse) - len(index)


@pytest.mark.parametrize("indices", [[3, 0, 2], []])
def test_unpacking_a_packed_batch_gives_the_batch_as_views(examples: TokenizedExamples, indices: list[int]) -> None:
    batch = collate(examples, np.array(indices, dtype=np.int64), 9, FINE)
    packed = batch.pack()
    again = batch.unpack(packed)
    assert again.shape == batch.shape
    assert sum(len(getattr(again, name)) for name in INDICES) == len(packed)
    for name in INDICES:
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
        assert getattr(again, name).untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
    # So a batch of the same shape takes its place when it is copied there.
    other = collate(examples, np.array([3, 2, 0][: len(indices)], dtype=np.int64), 9, StaticShapes((batch.shape,)))
    packed.copy_(other.pack())
    assert all(torch.equal(getattr(again, name), getattr(other, name)) for name in INDICES)
