"""N-gram counts of outputs and their references, shared by BLEU, NIST and CIDEr."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ngram = tuple[str, ...]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class SparseCounts(NamedTuple):
    """N-gram counts of several texts as a sparse matrix in coordinate format.

    There is one entry per distinct n-gram of each text, sorted by text, then n-gram. Each array has shape (entries,).
    """

    text: Integers
    """Index of the text."""
    ngram: Integers
    """Index of the n-gram in `NgramCounts.ngrams`."""
    frequency: Integers
    """Occurrences of the n-gram in the text."""


class NgramCounts(NamedTuple):
    """The n-grams of outputs and of their references over one common index."""

    ngrams: list[Ngram]
    """The distinct n-grams."""
    order: Integers
    """The n of each n-gram, shape (ngrams,)."""
    outputs: SparseCounts
    references: SparseCounts
    """Over all references of all instances, flattened."""
    instance: Integers
    """Index of the instance of each entry of `references`, shape (reference entries,)."""
    output_entry: Integers
    """For each entry of `references` the entry of `outputs` with the same instance and n-gram, or the number of entries
    of `outputs` if the output lacks the n-gram; shape (reference entries,)."""


def count_ngrams(
    references: Sequence[Sequence[Sequence[str]]], outputs: Sequence[Sequence[str]], max_order: int
) -> NgramCounts:
    """Count the n-grams of tokenized texts for n from 1 to `max_order`.

    Args:
        references: The tokens of each reference of each output.
        outputs: The tokens of each output.
        max_order: The largest n.
    """
    # An n-gram that is looked up for the first time gets the next free index.
    index: defaultdict[Ngram, int] = defaultdict()
    index.default_factory = index.__len__
    output_counts = _sparse_counts(outputs, max_order, index)
    reference_counts = _sparse_counts(list(chain.from_iterable(references)), max_order, index)
    instance = np.repeat(np.arange(len(references)), [len(group) for group in references])[reference_counts.text]
    keys = np.append(output_counts.text * len(index) + output_counts.ngram, np.iinfo(np.int64).max)
    wanted = instance * len(index) + reference_counts.ngram
    output_entry = np.searchsorted(keys, wanted)
    output_entry[keys[output_entry] != wanted] = len(output_counts.text)
    order = np.array([len(ngram) for ngram in index], dtype=np.int64)
    return NgramCounts(list(index), order, output_counts, reference_counts, instance, output_entry)


def _sparse_counts(texts: Sequence[Sequence[str]], max_order: int, index: dict[Ngram, int]) -> SparseCounts:
    ngrams = [_ngrams(tokens, max_order) for tokens in texts]
    text = np.repeat(np.arange(len(texts)), [len(found) for found in ngrams])
    ngram = np.fromiter(map(index.__getitem__, chain.from_iterable(ngrams)), dtype=np.int64, count=len(text))
    width = max(1, len(index))
    keys, frequency = np.unique(text * width + ngram, return_counts=True)
    return SparseCounts(*np.divmod(keys, width), frequency)


def _ngrams(tokens: Sequence[str], max_order: int) -> list[Ngram]:
    return [
        ngram for n in range(1, max_order + 1) for ngram in zip(*(tokens[start:] for start in range(n)), strict=False)
    ]


def sum_per_text(
    num_texts: int, max_order: int, counts: SparseCounts, order: Integers, values: Integers | Floats
) -> Floats:
    """Sum `values`, one per entry of `counts`, by text and n; shape (num_texts, max_order).

    Args:
        num_texts: Number of texts, including texts without n-grams.
        max_order: The largest n.
        counts: Counts of the texts.
        order: `NgramCounts.order`.
        values: Shape (entries,).
    """
    cells = counts.text * max_order + order[counts.ngram] - 1
    return sum_by_index(cells, values, num_texts * max_order).reshape(num_texts, max_order)


def sum_by_index(index: Integers, values: Integers | Floats, size: int) -> Floats:
    """Sum the `values` of equal index for each index from 0 to `size` - 1; shape (size,)."""
    # For empty weights np.bincount returns integer counts.
    return np.bincount(index, weights=values, minlength=size).astype(np.float64)
