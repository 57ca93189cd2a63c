"""CIDEr as in coco-caption, which is CIDEr-D without its stemming: clipped, with a length penalty, times 10.

Vedantam, Zitnick and Parikh (2015), "CIDEr: Consensus-based Image Description Evaluation", equations 1 to 4 and
section 6 (CIDEr-D); source: pycocoevalcap/cider/cider_scorer.py.
"""

from collections.abc import Sequence

import numpy as np

from lora_dist.errors import UserError
from lora_dist.metrics.ngrams import Floats, Integers, NgramCounts, count, per_text, sums

_LONGEST = 4
_SIGMA = 6.0


def sentence_scores(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> Floats:
    """CIDEr of each output, 0 to 10; the score of a set is their mean.

    An n-gram weighs log(instances / instances with it among their references), counted over all of `references`: the
    score of an output depends on the whole set, and in a set of a single instance every weight and score is 0.

    Args:
        references: The references of each output, as `ptb.tokenize` returns them.
        outputs: The outputs, likewise.

    Raises:
        UserError: if no reference holds a word.
    """
    counts = count(
        [[text.split() for text in group] for group in references], [text.split() for text in outputs], _LONGEST
    )
    if not len(counts.references.text):
        raise UserError("no reference holds a word, so CIDEr is not defined: check the references")
    group_sizes = np.array([len(group) for group in references])
    owner = np.repeat(np.arange(len(outputs)), group_sizes)
    scores: Floats = 10 * sums(owner, _similarities(counts, owner), len(outputs)) / group_sizes
    return scores


def _similarities(counts: NgramCounts, owner: Integers) -> Floats:
    """CIDEr-D of each reference with the output that owns it, 0 to 1: the mean over n."""
    outputs, references, order = counts.outputs, counts.references, counts.order
    instances, texts = int(owner[-1]) + 1, len(owner)
    weights = _weights(counts, instances)
    output_values = outputs.times * weights[outputs.gram]
    values = references.times * weights[references.gram]
    output_norms = np.sqrt(per_text(instances, _LONGEST, outputs, order, output_values**2))
    norms = np.sqrt(per_text(texts, _LONGEST, references, order, values**2))
    # The last number stands for the n-grams that the output does not have.
    partners = np.append(output_values, 0.0)[counts.partner]
    products = per_text(texts, _LONGEST, references, order, np.minimum(partners, values) * values)
    lengths = norms * output_norms[owner]
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    # coco-caption compares the lengths in bigrams, not in words.
    bigrams = per_text(texts, _LONGEST, references, order, references.times)[:, 1]
    output_bigrams = per_text(instances, _LONGEST, outputs, order, outputs.times)[:, 1]
    penalty = np.exp(-((bigrams - output_bigrams[owner]) ** 2) / (2 * _SIGMA**2))
    similarities: Floats = penalty * cosines.mean(axis=1)
    return similarities


def _weights(counts: NgramCounts, instances: int) -> Floats:
    """The inverse document frequency of each n-gram; one that is in no reference counts as if it were in one."""
    seen = np.unique(counts.instance * len(counts.grams) + counts.references.gram) % len(counts.grams)
    frequency = np.bincount(seen, minlength=len(counts.grams))
    weights: Floats = np.log(instances / np.maximum(frequency, 1))
    return weights
