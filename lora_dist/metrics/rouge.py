"""ROUGE_L as in coco-caption: F-measure of the longest common subsequence (LCS) with beta = 1.2.

Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries", equations 2 to 4. For several references
coco-caption takes the best precision and the best recall, which may come from different references; source:
pycocoevalcap/rouge/rouge.py.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BETA = 1.2


def sentence_rouge_l(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> NDArray[np.float64]:
    """Compute ROUGE_L of each output, 0 to 1, shape (outputs,); the corpus score is the mean.

    Args:
        references: The references of each output, as `ptb.ptb_tokenize` returns them.
        outputs: The outputs, likewise.
    """
    return np.array([_rouge_l(output, group) for group, output in zip(references, outputs, strict=True)])


def _rouge_l(output: str, references: Sequence[str]) -> float:
    # As in coco-caption, split(" ") makes one empty token of an empty text. It equals another empty text.
    tokens = output.split(" ")
    positions: dict[str, int] = {}
    for index, token in enumerate(tokens):
        positions[token] = positions.get(token, 0) | 1 << index
    precision = recall = 0.0
    for reference in references:
        reference_tokens = reference.split(" ")
        lcs = _lcs_length(positions, len(tokens), reference_tokens)
        precision = max(precision, lcs / len(tokens))
        recall = max(recall, lcs / len(reference_tokens))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _lcs_length(positions: dict[str, int], length: int, other_tokens: Sequence[str]) -> int:
    """Compute the length of the longest common subsequence of two token sequences.

    Bit-parallel (Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited"). A zero bit of `row` marks a token of
    the first sequence at which the LCS length grows. One addition updates all marks for the next token of the second.

    Args:
        positions: For each token of the first sequence, a bit mask of its positions.
        length: Tokens of the first sequence.
        other_tokens: The second sequence.
    """
    row = full = (1 << length) - 1
    for token in other_tokens:
        if matches := row & positions.get(token, 0):
            row = (row + matches | row - matches) & full
    return length - row.bit_count()
