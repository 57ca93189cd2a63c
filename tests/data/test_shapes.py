"""Static shapes compared with all others that could have been chosen, and rounded ones with their definition."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest

from lora_dist.data.sampler import Indices
from lora_dist.data.shapes import BatchShape, Contents, RoundedShapes, Shapes, StaticShapes, static_shapes


def random_contents(seed: int, n: int, most_rows: int = 8) -> tuple[Indices, Indices]:
    """Contents of batches of random examples, the last without any as on a rank without examples; how often each."""
    draw = np.random.default_rng(seed)
    found = [(0, 0, 0, 0)]
    while len(found) < n:
        lengths = draw.integers(8, 90, int(draw.integers(1, most_rows + 1)))
        found.append(
            (len(lengths), int(lengths.sum()), int(lengths.max()), int((lengths // draw.integers(2, 5)).sum()))
        )
    return np.array(found[::-1]), draw.integers(1, 40, n)


def rounded(value: int, multiple: int) -> int:
    return next(size for size in range(value, value + multiple) if size % multiple == 0)


def holds(shape: BatchShape, contents: Contents) -> bool:
    return all(
        own <= slots
        for own, slots in zip(contents, (shape.rows, shape.tokens, shape.length, shape.labels), strict=True)
    )


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("most", [1, 2, 12, 500])
@pytest.mark.parametrize("seed", range(2))
def test_every_batch_finds_one_of_a_few_shapes_that_holds_it(seed: int, most: int, multiple: int) -> None:
    contents, counts = random_contents(seed, 200)
    shapes = static_shapes(contents, counts, most, multiple)
    assert len(set(shapes.shapes)) == len(shapes.shapes) <= most
    for row in contents.tolist():
        shape = shapes.fit(Contents(*row))
        assert shape in shapes.shapes
        assert holds(shape, Contents(*row))
        # No shape with less work would have held it.
        assert not any(other.work < shape.work and holds(other, Contents(*row)) for other in shapes.shapes)


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("most", [1, 3, 12])
def test_the_padding_of_a_static_shape_has_free_places_in_rows_of_one_length(most: int, multiple: int) -> None:
    contents, counts = random_contents(7, 100, most_rows=3)
    shapes = static_shapes(contents, counts, most, multiple).shapes
    assert [shape.work for shape in shapes] == sorted(shape.work for shape in shapes)
    for shape in shapes:
        assert shape.tokens <= shape.rows * shape.length
        assert 1 <= shape.outputs <= shape.tokens
        assert shape.labels == shape.outputs
        assert shape.tokens % multiple == shape.length % multiple == 0
        assert shape.outputs % multiple == 0 or shape.outputs == shape.tokens


def splits(count: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to split a sequence into at most `most` intervals."""
    for cuts in range(min(most, count)):
        for ends in combinations(range(1, count), cuts):
            yield list(pairwise([0, *ends, count]))


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("most", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_split_of_the_sizes_pads_less(seed: int, most: int, multiple: int) -> None:
    contents, counts = random_contents(seed, 10, most_rows=2)
    tokens = [rounded(max(1, row[1]), multiple) for row in contents.tolist()]
    outputs = [min(rounded(max(1, row[3]), multiple), t) for row, t in zip(contents.tolist(), tokens, strict=True)]
    sizes = sorted(set(tokens))

    @cache
    def cost(first: int, end: int) -> int:
        """Work of all batches with one of these sizes when each is as large as the largest of them."""
        own = [n for n, size in enumerate(tokens) if size in sizes[first:end]]
        return int(counts[own].sum()) * (2 * sizes[end - 1] + max(outputs[n] for n in own))

    least = min(sum(cost(*part) for part in parts) for parts in splits(len(sizes), most))
    shapes = static_shapes(contents, counts, most, multiple)
    ends = sorted(sizes.index(shape.tokens) + 1 for shape in shapes.shapes)
    assert sum(cost(*part) for part in pairwise([0, *ends])) == least
    # A batch may even fit a smaller shape than that of its group.
    assert work(shapes, contents, counts) <= least


def work(shapes: Shapes, contents: Indices, counts: Indices) -> int:
    return sum(n * shapes.fit(Contents(*row)).work for row, n in zip(contents.tolist(), counts.tolist(), strict=True))


def test_more_shapes_never_take_more_work() -> None:
    contents, counts = random_contents(3, 300)
    found = [work(static_shapes(contents, counts, most, 16), contents, counts) for most in (1, 2, 4, 8, 16, 400)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.7 * found[0]


def test_with_a_shape_for_each_size_tokens_are_only_rounded() -> None:
    contents, counts = random_contents(5, 60)
    shapes, fine = static_shapes(contents, counts, 10**6, 16), RoundedShapes(16)
    assert {s.tokens for s in shapes.shapes} == {fine.fit(Contents(*row)).tokens for row in contents.tolist()}


@pytest.mark.parametrize("most", [1, 12])
def test_one_batch_or_one_size_gets_one_shape(most: int) -> None:
    alone = static_shapes(np.array([[2, 50, 30, 17]]), np.array([1]), most, 16)
    assert alone.shapes == (BatchShape(tokens=64, rows=2, length=32, outputs=32, labels=32),)
    contents = np.array([[2, 50, 30, 17], [1, 49, 49, 40], [2, 64, 33, 9]])
    together = static_shapes(contents, np.array([3, 1, 5]), most, 16)
    assert together.shapes == (BatchShape(tokens=64, rows=2, length=64, outputs=48, labels=48),)


def test_contents_that_no_shape_holds_are_refused() -> None:
    shapes = StaticShapes((BatchShape(64, 2, 32, 32, 32),))
    for contents in (
        Contents(3, 50, 30, 17),
        Contents(2, 65, 30, 17),
        Contents(2, 50, 33, 17),
        Contents(2, 50, 30, 33),
    ):
        with pytest.raises(AssertionError, match="no static shape holds"):
            shapes.fit(contents)


@pytest.mark.parametrize("multiple", [1, 5, 16])
def test_a_rounded_shape_is_the_smallest_in_multiples(multiple: int) -> None:
    for row in random_contents(0, 200)[0].tolist():
        contents = Contents(*row)
        shape = RoundedShapes(multiple).fit(contents)
        assert (shape.rows, shape.labels) == (max(1, contents.rows), contents.labels)
        assert shape.tokens == rounded(max(1, contents.tokens), multiple)
        lengths = range(multiple, 10**6, multiple)
        assert shape.length == next(n for n in lengths if n >= contents.longest and n * shape.rows >= shape.tokens)
        assert shape.outputs == min(shape.tokens, rounded(max(1, contents.labels), multiple))


def test_the_work_of_a_shape_is_that_of_its_examples_in_the_sampler() -> None:
    assert BatchShape(tokens=100, rows=2, length=60, outputs=30, labels=25).work == 2 * 100 + 30
