"""CIDEr as in coco-caption: CIDEr-D without stemming, with clipping and a length penalty, times 10.

Vedantam, Zitnick and Parikh (2015), "CIDEr: Consensus-based Image Description Evaluation", equations 1 to 4 and
section 6 (CIDEr-D); source: pycocoevalcap/cider/cider_scorer.py.
"""

from collections.abc import Sequence

import numpy as np

from lora_dist.errors import UserError
from lora_dist.metrics.ngrams import Floats, Integers, NgramCounts, count_ngrams, sum_by_index, sum_per_text

_MAX_ORDER = 4
_SIGMA = 6.0


def sentence_cider(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> Floats:
    """Compute CIDEr of each output, 0 to 10, shape (outputs,); the corpus score is the mean.

    The weight of an n-gram is log(instances / document frequency), where an instance counts if one of its references
    has the n-gram. A score therefore depends on the whole set. In a set of one instance all weights and scores are 0.

    Args:
        references: The references of each output, as `ptb.ptb_tokenize` returns them.
        outputs: The outputs, likewise.

    Raises:
        UserError: if no reference has a token.
    """
    counts = count_ngrams(
        [[text.split() for text in group] for group in references], [text.split() for text in outputs], _MAX_ORDER
    )
    if not len(counts.references.text):
        raise UserError("no reference has a token, so CIDEr is undefined: check the references")
    group_sizes = np.array([len(group) for group in references])
    instance = np.repeat(np.arange(len(outputs)), group_sizes)
    scores: Floats = 10 * sum_by_index(instance, _similarities(counts, instance), len(outputs)) / group_sizes
    return scores


def _similarities(counts: NgramCounts, instance: Integers) -> Floats:
    """Compute CIDEr-D of each reference with its output, 0 to 1, averaged over n; shape (references,).

    Args:
        counts: N-grams of outputs and references.
        instance: Index of the instance of each reference, shape (references,).
    """
    outputs, references, order = counts.outputs, counts.references, counts.order
    num_instances, num_references = int(instance[-1]) + 1, len(instance)
    idf = _inverse_document_frequencies(counts, num_instances)
    output_tfidf = outputs.frequency * idf[outputs.ngram]
    tfidf = references.frequency * idf[references.ngram]
    output_norms = np.sqrt(sum_per_text(num_instances, _MAX_ORDER, outputs, order, output_tfidf**2))
    norms = np.sqrt(sum_per_text(num_references, _MAX_ORDER, references, order, tfidf**2))
    # The appended 0 is for n-grams that the output lacks.
    matching = np.append(output_tfidf, 0.0)[counts.output_entry]
    products = sum_per_text(num_references, _MAX_ORDER, references, order, np.minimum(matching, tfidf) * tfidf)
    norm_products = norms * output_norms[instance]
    cosines = np.divide(products, norm_products, out=np.zeros_like(products), where=norm_products > 0)
    # coco-caption compares the lengths in bigrams, not in tokens.
    bigrams = sum_per_text(num_references, _MAX_ORDER, references, order, references.frequency)[:, 1]
    output_bigrams = sum_per_text(num_instances, _MAX_ORDER, outputs, order, outputs.frequency)[:, 1]
    penalty = np.exp(-((bigrams - output_bigrams[instance]) ** 2) / (2 * _SIGMA**2))
    similarities: Floats = penalty * cosines.mean(axis=1)
    return similarities


def _inverse_document_frequencies(counts: NgramCounts, num_instances: int) -> Floats:
    """Compute log(instances / document frequency) of each n-gram, shape (ngrams,).

    The document frequency of an n-gram without reference is set to 1, as in coco-caption.
    """
    documents = np.unique(counts.instance * len(counts.ngrams) + counts.references.ngram)
    frequency = np.bincount(documents % len(counts.ngrams), minlength=len(counts.ngrams))
    idf: Floats = np.log(num_instances / np.maximum(frequency, 1))
    return idf
