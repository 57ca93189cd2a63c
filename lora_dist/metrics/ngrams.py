"""The n-grams of outputs and their references, counted once for BLEU, NIST or CIDEr."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ngram = tuple[str, ...]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """Counts of n-grams: one row for each n-gram of each text, sorted by text and n-gram."""

    text: Integers
    """Which text (its index)."""
    gram: Integers
    """Which n-gram (its index in `NgramCounts.grams`)."""
    times: Integers
    """How often it occurs in that text."""


class NgramCounts(NamedTuple):
    """The n-grams of some outputs and of their references."""

    grams: list[Ngram]
    """The distinct n-grams."""
    order: Integers
    """The n of each of them."""
    outputs: Rows
    references: Rows
    instance: Integers
    """The output (its index) to which each row of `references` belongs."""
    partner: Integers
    """The row of `outputs` with the same n-gram of the same instance, for each row of `references`; where there is
    none, the number of rows of `outputs`."""


def count(references: Sequence[Sequence[Sequence[str]]], outputs: Sequence[Sequence[str]], longest: int) -> NgramCounts:
    """Counts the n-grams of tokenised texts for n from 1 to `longest`.

    Args:
        references: The tokens of each reference of each output.
        outputs: The tokens of each output.
        longest: The largest n.
    """
    # Each n-gram met for the first time gets the number of those met before.
    index: defaultdict[Ngram, int] = defaultdict()
    index.default_factory = index.__len__
    output_rows = _rows(outputs, longest, index)
    reference_rows = _rows(list(chain.from_iterable(references)), longest, index)
    instance = np.repeat(np.arange(len(references)), [len(group) for group in references])[reference_rows.text]
    keys = np.append(output_rows.text * len(index) + output_rows.gram, np.iinfo(np.int64).max)
    wanted = instance * len(index) + reference_rows.gram
    partner = np.searchsorted(keys, wanted)
    partner[keys[partner] != wanted] = len(output_rows.text)
    order = np.array([len(gram) for gram in index], dtype=np.int64)
    return NgramCounts(list(index), order, output_rows, reference_rows, instance, partner)


def _rows(texts: Sequence[Sequence[str]], longest: int, index: dict[Ngram, int]) -> Rows:
    grams = [_ngrams(tokens, longest) for tokens in texts]
    text = np.repeat(np.arange(len(texts)), [len(some) for some in grams])
    gram = np.fromiter(map(index.__getitem__, chain.from_iterable(grams)), dtype=np.int64, count=len(text))
    width = max(1, len(index))
    keys, counts = np.unique(text * width + gram, return_counts=True)
    return Rows(*np.divmod(keys, width), counts)


def _ngrams(tokens: Sequence[str], longest: int) -> list[Ngram]:
    return [gram for n in range(1, longest + 1) for gram in zip(*(tokens[start:] for start in range(n)), strict=False)]


def per_text(texts: int, orders: int, rows: Rows, order: Integers, values: Integers | Floats) -> Floats:
    """Sums of `values` (one a row) for each text and each n: an array of shape (texts, orders)."""
    cells = rows.text * orders + order[rows.gram] - 1
    return sums(cells, values, texts * orders).reshape(texts, orders)


def sums(cells: Integers, values: Integers | Floats, size: int) -> Floats:
    """For each cell from 0 to `size` - 1 the sum of those `values` that belong to it."""
    # Without any value, bincount forgets that it was to add up numbers, and counts.
    return np.bincount(cells, weights=values, minlength=size).astype(np.float64)
