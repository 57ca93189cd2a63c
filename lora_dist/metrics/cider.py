"""CIDEr as in coco-caption, which is CIDEr-D without its stemming: clipped, with a length penalty, times 10.

Vedantam, Zitnick and Parikh (2015), "CIDEr: Consensus-based Image Description Evaluation", equations 1 to 4 and
section 6 (CIDEr-D); source: pycocoevalcap/cider/cider_scorer.py.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from lora_dist.config import UserError
from lora_dist.metrics.ngrams import Ngram, ngrams

_LONGEST = 4
_SIGMA = 6.0


def sentence_scores(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> NDArray[np.float64]:
    """CIDEr of each output, 0 to 10; the score of a set is their mean.

    An n-gram weighs log(instances / instances with it among their references), counted over all of `references`: the
    score of an output depends on the whole set, and in a set of a single instance every weight and score is 0.

    Args:
        references: The references of each output, as `ptb.tokenize` returns them.
        outputs: The outputs, likewise.

    Raises:
        UserError: if no reference holds a word.
    """
    counts = [[Counter(ngrams(text.split(), _LONGEST)) for text in group] for group in references]
    frequency = Counter(gram for group in counts for gram in set(chain.from_iterable(group)))
    if not frequency:
        raise UserError("no reference holds a word, so CIDEr is not defined: check the references")
    unseen = math.log(len(references))
    weights = {gram: unseen - math.log(count) for gram, count in frequency.items()}
    return np.array([_score(output, group, weights, unseen) for output, group in zip(outputs, counts, strict=True)])


def _score(output: str, references: Sequence[Counter[Ngram]], weights: dict[Ngram, float], unseen: float) -> float:
    counts = Counter(ngrams(output.split(), _LONGEST))
    vector = {gram: count * weights.get(gram, unseen) for gram, count in counts.items()}
    norms, bigrams = _norms(vector), _bigrams(counts)
    total = 0.0
    for reference in references:
        other = {gram: count * weights[gram] for gram, count in reference.items()}
        products = [0.0] * _LONGEST
        for gram in vector.keys() & other.keys():
            products[len(gram) - 1] += min(vector[gram], other[gram]) * other[gram]
        # coco-caption compares lengths in bigrams, not in words.
        penalty = math.exp(-((bigrams - _bigrams(reference)) ** 2) / (2 * _SIGMA**2))
        cosines = (p / (a * b) if a and b else 0.0 for p, a, b in zip(products, norms, _norms(other), strict=True))
        total += penalty * sum(cosines)
    return 10 * total / (_LONGEST * len(references))


def _norms(vector: dict[Ngram, float]) -> list[float]:
    """Euclidean norm of the 1-grams, of the 2-grams and so on."""
    squares = [0.0] * _LONGEST
    for gram, weight in vector.items():
        squares[len(gram) - 1] += weight * weight
    return [math.sqrt(square) for square in squares]


def _bigrams(counts: Counter[Ngram]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 2)
