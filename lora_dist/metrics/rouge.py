"""ROUGE_L as in coco-caption: the longest common subsequence with the references, recall weighted by beta = 1.2.

Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries", equations 2 to 4, with coco-caption's choice for
several references (the best precision and the best recall, possibly of two different references); source:
pycocoevalcap/rouge/rouge.py.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BETA = 1.2


def sentence_scores(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> NDArray[np.float64]:
    """ROUGE_L of each output, 0 to 1; the score of a set is their mean.

    Args:
        references: The references of each output, as `ptb.tokenize` returns them.
        outputs: The outputs, likewise.
    """
    return np.array([_score(output, group) for group, output in zip(references, outputs, strict=True)])


def _score(output: str, references: Sequence[str]) -> float:
    # split(" ") makes one empty token of an empty text, as coco-caption does: it equals another empty text.
    words = output.split(" ")
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _common_subsequence(positions, len(words), others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(positions: dict[str, int], length: int, others: Sequence[str]) -> int:
    """Length of the longest common subsequence of `others` and a text of `length` words.

    Bit-parallel (Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited"): a zero bit of `row` marks a word of
    the text at which the length grows; one addition moves all the marks for one more word of the other text.

    Args:
        positions: For each word of the text, the bits of the places where it stands.
        length: Words of the text.
        others: Words of the other text.
    """
    row = full = (1 << length) - 1
    for word in others:
        if matches := row & positions.get(word, 0):
            row = (row + matches | row - matches) & full
    return length - row.bit_count()
