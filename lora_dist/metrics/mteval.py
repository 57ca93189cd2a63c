"""BLEU and NIST of the E2E NLG Challenge, in both variants of its script.

`perl` is what `mteval-v13a-sig.pl` prints, which the script runs by default. `python` is what its port
`metrics/pymteval.py` computes, the option -p. Both are case-insensitive, use v13a tokenization, clip matches by the
largest count in any one reference, and compare lengths with the closest reference (of two equally close the shorter):

- BLEU: Papineni et al. (2002), "BLEU: a Method for Automatic Evaluation of Machine Translation", section 2.3.
- NIST: Doddington (2002), "Automatic Evaluation of Machine Translation Quality Using N-gram Co-Occurrence
  Statistics", equations 2 (information) and 3 (score).

They differ in five points:

1. Reference length in NIST. `perl` divides the tokens of all references by the mean number of references per instance.
   `python` sums the mean reference length of each instance. They agree only if all instances have the same number of
   references; E2E has 1 to 43 per instance, hence the difference. (The information of an n-gram is the same: both
   count it over all references of all instances.)
2. Short outputs. An output of L tokens has max(0, L - n + 1) n-grams in `perl`. In `python` it has L - n + 1, even if
   negative, which increases the precisions of the whole set: they may exceed 1, and NIST may be negative or undefined.
3. Empty texts. In `perl` an empty text has no token, and an empty reference other than the first of its instance is
   not counted. In `python` an empty text is one empty token, which matches another one.
4. No match for some n. `perl` sets the first, second, ... such n to 1/2, 1/4, ... matches, and skips an n without
   n-grams. `python` sets it to 1e-15 matches.
5. Details. `perl` lower-cases only A to Z, `python` all letters. `perl` does not split at the control characters
   U+001C to U+001F. It truncates a text at `</seg>`, because it parses the texts as markup. It computes the information
   of a bigram that starts with the token "0" as if it were a unigram.
"""

import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_dist.errors import UserError
from lora_dist.metrics.ngrams import Floats, Ngram, NgramCounts, count_ngrams, sum_by_index, sum_per_text

Variant = Literal["perl", "python"]

_MAX_ORDER = 5
_BLEU_MAX_ORDER = 4
# The brevity penalty is 1/2 at 2/3 of the reference length (Doddington 2002, equation 3).
_NIST_BETA = math.log(0.5) / math.log(1.5) ** 2

_ENTITIES = (("<skipped>", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SYMBOLS = str.maketrans({symbol: f" {symbol} " for symbol in '!"#$%&()*+/:;<=>?@[\\]^_`{|}~'})
_DOT_OR_COMMA_AFTER_NON_DIGIT = re.compile(r"([^0-9])([.,])")
_DOT_OR_COMMA_BEFORE_NON_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")
_PERL_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_ASCII_LOWER = str.maketrans({chr(code): chr(code).lower() for code in range(ord("A"), ord("Z") + 1)})
_END_OF_SEGMENT = re.compile(r"</seg\s*>", re.IGNORECASE)
_UNSUPPORTED_TAGS = re.compile(r"</(?:doc|refset|tstset)\s*>|</seg\s*>.*<seg", re.IGNORECASE | re.DOTALL)


class NgramStatistics(NamedTuple):
    """Sufficient statistics of BLEU and NIST, one row per instance: sum them, resample them or score single rows."""

    matches: Floats
    """Clipped n-gram matches for n = 1 to 5, shape (instances, 5)."""
    information: Floats
    """Information of the matched n-grams in bits for n = 1 to 5, from counts over all references of the set; shape
    (instances, 5)."""
    totals: Floats
    """N-grams of the output for n = 1 to 5 as the variant counts them, shape (instances, 5); column 0 is the length in
    tokens."""
    closest_length: Floats
    """Tokens of the reference closest in length, shape (instances,)."""
    reference_tokens: Floats
    """Tokens of all references together, shape (instances,)."""
    num_references: Floats
    """References as the variant counts them, shape (instances,)."""

    def take(self, indices: NDArray[np.intp]) -> "NgramStatistics":
        """Return the rows of the instances `indices`, which may repeat."""
        return NgramStatistics(*(column[indices] for column in self))


def tokenize_v13a(text: str, variant: Variant) -> list[str]:
    """Tokenize and lower-case one text (mteval-v13a without international tokenization).

    Raises:
        UserError: if `variant` is perl and the text has tags that the Perl script parses as its own.
    """
    if variant == "perl":
        if _UNSUPPORTED_TAGS.search(text):
            raise UserError(f"the Perl script fails on the tags in {text!r}: remove them or use --mteval python")
        text = _END_OF_SEGMENT.split(text, maxsplit=1)[0]
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    if variant == "perl":
        text = text.translate(_ASCII_LOWER)
    text = f" {text} ".translate(_SYMBOLS)
    text = _DOT_OR_COMMA_AFTER_NON_DIGIT.sub(r"\1 \2 ", text)
    text = _DOT_OR_COMMA_BEFORE_NON_DIGIT.sub(r" \1 \2", text)
    text = _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text)
    if variant == "perl":
        return [token for token in _PERL_SPACE.split(text) if token]
    return [token.lower() for token in text.split()] or [""]


def ngram_statistics(references: Sequence[Sequence[str]], outputs: Sequence[str], variant: Variant) -> NgramStatistics:
    """Compute the sufficient statistics of each instance.

    Args:
        references: One or more references per output, untokenized.
        outputs: The outputs, untokenized.
        variant: perl or python.

    Raises:
        UserError: as `tokenize_v13a`.
    """
    tokens = {text: tokenize_v13a(text, variant) for text in {*chain.from_iterable(references), *outputs}}
    groups = [[tokens[text] for text in group] for group in references]
    counts = count_ngrams(groups, [tokens[output] for output in outputs], _MAX_ORDER)
    # For each n-gram of an output its largest count in one reference. The last element collects the n-grams of
    # references that the output lacks.
    clip = np.zeros(len(counts.outputs.frequency) + 1, dtype=np.int64)
    np.maximum.at(clip, counts.output_entry, counts.references.frequency)
    matches = np.minimum(counts.outputs.frequency, clip[:-1])
    information = matches * _information(counts, variant)[counts.outputs.ngram]
    rows = [_length_statistics(tokens[output], group, variant) for output, group in zip(outputs, groups, strict=True)]
    return NgramStatistics(
        sum_per_text(len(outputs), _MAX_ORDER, counts.outputs, counts.order, matches),
        sum_per_text(len(outputs), _MAX_ORDER, counts.outputs, counts.order, information),
        *(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)),
    )


def _length_statistics(
    output: Sequence[str], references: Sequence[Sequence[str]], variant: Variant
) -> tuple[list[int], int, int, int]:
    """Return totals, closest_length, reference_tokens and num_references of one row of `NgramStatistics`."""
    totals = [len(output) - n for n in range(_MAX_ORDER)]
    lengths = [len(reference) for reference in references]
    if variant == "perl":
        totals = [max(0, total) for total in totals]
    nonempty = [length for length in lengths if length]
    # The Perl script initializes the closest length with the first reference, then skips empty references.
    closest = min([*lengths[:1], *nonempty], key=lambda length: (abs(length - len(output)), length))
    return totals, closest, sum(lengths), len(nonempty)


def _information(counts: NgramCounts, variant: Variant) -> Floats:
    """Compute the information of each n-gram in bits, shape (ngrams,); 0 if it is in no reference.

    Doddington (2002), equation 2: log2 of the count of the n-gram without its last token, divided by the count of the
    n-gram, both over all references.
    """
    frequency = sum_by_index(counts.references.ngram, counts.references.frequency, len(counts.ngrams))
    num_tokens = frequency[counts.order == 1].sum()
    # The Perl script looks up the shorter n-gram only if it is true, and in Perl the string "0" is false.
    not_looked_up: tuple[Ngram, ...] = ((), ("0",)) if variant == "perl" else ((),)
    index = {ngram: number for number, ngram in enumerate(counts.ngrams)}
    prefix = np.array([-1 if ngram[:-1] in not_looked_up else index[ngram[:-1]] for ngram in counts.ngrams], np.int64)
    prefix_frequency = np.append(frequency, num_tokens)[prefix]
    information: Floats = np.zeros(len(counts.ngrams))
    known = frequency > 0
    information[known] = np.log2(prefix_frequency[known] / frequency[known])
    return information


def corpus_bleu(statistics: NgramStatistics, variant: Variant, smoothing: float = 0.0) -> float:
    """Compute BLEU-4 of all instances together, 0 to 1; `python` may exceed 1 for short outputs (see the module).

    Args:
        statistics: Of one or more instances.
        variant: The variant of `statistics`.
        smoothing: Added to the matches and totals of every n, only in `python`; 1.0 gives the script's sentBLEU.
    """
    matches = statistics.matches[:, :_BLEU_MAX_ORDER].sum(0).tolist()
    totals = statistics.totals[:, :_BLEU_MAX_ORDER].sum(0).tolist()
    length, closest = totals[0], float(statistics.closest_length.sum())
    if variant == "perl":
        if length == 0:
            return 0.0
        return math.exp(_perl_log_precision(matches, totals) + min(0.0, 1 - closest / length))
    log_precision = math.fsum(
        math.log(max(match + smoothing, 1e-15) / max(total + smoothing, 1e-9))
        for match, total in zip(matches, totals, strict=True)
    )
    return math.exp(log_precision / _BLEU_MAX_ORDER + min(0.0, 1 - closest / length))


def _perl_log_precision(matches: Sequence[float], totals: Sequence[float]) -> float:
    """Compute the mean log precision over n, with 1/2, 1/4, ... for n without match; n without n-grams add 0."""
    log_precision, smoothed_match = 0.0, 1.0
    for match, total in zip(matches, totals, strict=True):
        if total and not match:
            smoothed_match /= 2
        if total:
            log_precision += math.log((match or smoothed_match) / total)
    return log_precision / len(totals)


def corpus_nist(statistics: NgramStatistics, variant: Variant) -> float:
    """Compute NIST-5 of all instances together, in bits.

    Raises:
        UserError: where the script divides by zero: in `perl` if all references are empty, in `python` if the n-grams
            of some n sum to 0 because short outputs count as negative, as in a single output of fewer than 5 tokens.
    """
    information, totals = statistics.information.sum(0), statistics.totals.sum(0)
    if variant == "perl":
        if not statistics.reference_tokens.any():
            raise UserError("all references are empty, so NIST is undefined: check the references")
        references_per_instance = statistics.num_references.sum() / len(statistics.num_references)
        reference_length = statistics.reference_tokens.sum() / references_per_instance
        totals = np.maximum(totals, 1)
    else:
        reference_length = (statistics.reference_tokens / statistics.num_references).sum()
    if not totals.all():
        raise UserError("the outputs are too short for NIST in the python variant: use --mteval perl")
    ratio = float(statistics.totals[:, 0].sum() / reference_length)
    brevity_penalty = math.exp(_NIST_BETA * math.log(min(ratio, 1.0)) ** 2) if ratio > 0 else 0.0
    return brevity_penalty * float((information / totals).sum())
