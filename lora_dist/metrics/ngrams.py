"""The n-grams of a text."""

from collections.abc import Sequence

Ngram = tuple[str, ...]


def ngrams(tokens: Sequence[str], longest: int) -> list[Ngram]:
    """All n-grams of `tokens` for n from 1 to `longest`, with repetitions."""
    return [gram for n in range(1, longest + 1) for gram in zip(*(tokens[start:] for start in range(n)), strict=False)]
