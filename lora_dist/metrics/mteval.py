"""BLEU and NIST of the E2E NLG Challenge, in both variants its script offers.

`perl` is what `mteval-v13a-sig.pl` prints, which the script runs by default; `python` is what its port
`metrics/pymteval.py` computes, the option -p. Both are case-insensitive, take v13a's tokens, clip matches by the
largest count in any one reference and compare lengths with the closest reference (the shorter of two as close):

- BLEU: Papineni et al. (2002), "BLEU: a Method for Automatic Evaluation of Machine Translation", section 2.3.
- NIST: Doddington (2002), "Automatic Evaluation of Machine Translation Quality Using N-gram Co-Occurrence
  Statistics", equations 2 (information) and 3 (score).

They part in five places:

1. NIST's reference length. `perl` divides the words of all references by the mean number of references an instance;
   `python` adds up each instance's mean length. They agree only if every instance has as many references. Hence the
   difference on E2E, where instances have 1 to 43. (The information of an n-gram is the same: both count it in all
   references of all instances.)
2. Short outputs. One of L words has max(0, L - n + 1) n-grams in `perl`, but L - n + 1 in `python` even below 0, which
   makes the precisions of the whole set larger (they may exceed 1, and NIST may be negative or undefined).
3. Empty texts. One has no token in `perl`, where an empty reference other than an instance's first also does not
   count; in `python` it is one empty token, which matches another one.
4. No match at all for some n. `perl` takes 1/2, 1/4, ... match for the first, second, ... such n, and leaves out an n
   for which there is no n-gram; `python` takes 1e-15 matches.
5. Details. `perl` lower-cases A to Z only, `python` any letter; `perl` does not split at the control characters
   U+001C to U+001F; it cuts a text at `</seg>`, since it reads the texts as markup; and it takes the information of a
   bigram that starts with the token "0" as if it were a unigram.
"""

import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_dist.errors import UserError
from lora_dist.metrics.ngrams import Floats, Ngram, NgramCounts, count, per_text, sums

Variant = Literal["perl", "python"]

_LONGEST = 5
_BLEU_LONGEST = 4
# A set 2/3 as long as its references gets half of the NIST score (Doddington 2002, equation 3).
_NIST_BETA = math.log(0.5) / math.log(1.5) ** 2

_ENTITIES = (("<skipped>", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SYMBOLS = str.maketrans({symbol: f" {symbol} " for symbol in '!"#$%&()*+/:;<=>?@[\\]^_`{|}~'})
_DOT_OR_COMMA_AFTER = re.compile(r"([^0-9])([.,])")
_DOT_OR_COMMA_BEFORE = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")
_PERL_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_ASCII_LOWER = str.maketrans({chr(code): chr(code).lower() for code in range(ord("A"), ord("Z") + 1)})
_END_OF_SEGMENT = re.compile(r"</seg\s*>", re.IGNORECASE)
_MISREAD = re.compile(r"</(?:doc|refset|tstset)\s*>|</seg\s*>.*<seg", re.IGNORECASE | re.DOTALL)


class Statistics(NamedTuple):
    """What BLEU and NIST need of each instance: one row an instance, to be added up, resampled or taken one by one."""

    matches: Floats
    """Matched n-grams of the output, n = 1 to 5, clipped."""
    information: Floats
    """Information of the matched n-grams, n = 1 to 5, in bits; its counts come from all references of the set."""
    totals: Floats
    """n-grams of the output, n = 1 to 5, as the variant counts them; the first is its length in tokens."""
    closest: Floats
    """Tokens of the reference closest in length."""
    reference_tokens: Floats
    """Tokens of all references together."""
    references: Floats
    """References, as the variant counts them."""

    def take(self, rows: NDArray[np.intp]) -> "Statistics":
        """The statistics of the instances `rows`, repetitions included."""
        return Statistics(*(column[rows] for column in self))


def tokenize(text: str, variant: Variant) -> list[str]:
    """The tokens of one text, lower case (mteval-v13a without international tokenisation).

    Raises:
        UserError: if `variant` is perl and the text holds tags that the Perl script takes for its own.
    """
    if variant == "perl":
        if _MISREAD.search(text):
            raise UserError(f"the Perl script stops at the tags in {text!r}: remove them or use --mteval python")
        text = _END_OF_SEGMENT.split(text, maxsplit=1)[0]
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    if variant == "perl":
        text = text.translate(_ASCII_LOWER)
    text = f" {text} ".translate(_SYMBOLS)
    text = _DOT_OR_COMMA_AFTER.sub(r"\1 \2 ", text)
    text = _DOT_OR_COMMA_BEFORE.sub(r" \1 \2", text)
    text = _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text)
    if variant == "perl":
        return [token for token in _PERL_SPACE.split(text) if token]
    return [token.lower() for token in text.split()] or [""]


def statistics(references: Sequence[Sequence[str]], outputs: Sequence[str], variant: Variant) -> Statistics:
    """The sufficient statistics of each instance.

    Args:
        references: One or more references an output, as they were written.
        outputs: The outputs, as they were written.
        variant: perl or python.

    Raises:
        UserError: as `tokenize`.
    """
    tokens = {text: tokenize(text, variant) for text in {*chain.from_iterable(references), *outputs}}
    groups = [[tokens[text] for text in group] for group in references]
    counts = count(groups, [tokens[output] for output in outputs], _LONGEST)
    # For each n-gram of an output the largest count in one reference; the last number is for those it does not have.
    clip = np.zeros(len(counts.outputs.times) + 1, dtype=np.int64)
    np.maximum.at(clip, counts.partner, counts.references.times)
    matched = np.minimum(counts.outputs.times, clip[:-1])
    gained = matched * _information(counts, variant)[counts.outputs.gram]
    lengths = [_lengths(tokens[output], group, variant) for output, group in zip(outputs, groups, strict=True)]
    return Statistics(
        per_text(len(outputs), _LONGEST, counts.outputs, counts.order, matched),
        per_text(len(outputs), _LONGEST, counts.outputs, counts.order, gained),
        *(np.array(column, dtype=np.float64) for column in zip(*lengths, strict=True)),
    )


def _lengths(
    output: Sequence[str], references: Sequence[Sequence[str]], variant: Variant
) -> tuple[list[int], int, int, int]:
    """The other columns of a row of `Statistics`: totals, closest, reference_tokens and references."""
    totals = [len(output) - n for n in range(_LONGEST)]
    lengths = [len(reference) for reference in references]
    if variant == "perl":
        totals = [max(0, total) for total in totals]
    counted = [length for length in lengths if length]
    # The Perl script starts from the first reference, whatever it is, and skips empty ones after it.
    closest = min([*lengths[:1], *counted], key=lambda length: (abs(length - len(output)), length))
    return totals, closest, sum(lengths), len(counted)


def _information(counts: NgramCounts, variant: Variant) -> Floats:
    """log2 of (count of the n-gram without its last token / count of the n-gram), over all references; 0 if in none."""
    occurrences = sums(counts.references.gram, counts.references.times, len(counts.grams))
    tokens = occurrences[counts.order == 1].sum()
    # The Perl script looks up the shorter n-gram only if it is true, and to Perl the string "0" is false.
    unseen: tuple[Ngram, ...] = ((), ("0",)) if variant == "perl" else ((),)
    index = {gram: number for number, gram in enumerate(counts.grams)}
    shorter = np.array([-1 if gram[:-1] in unseen else index[gram[:-1]] for gram in counts.grams], dtype=np.int64)
    shorter_occurrences = np.append(occurrences, tokens)[shorter]
    information: Floats = np.zeros(len(counts.grams))
    known = occurrences > 0
    information[known] = np.log2(shorter_occurrences[known] / occurrences[known])
    return information


def bleu(statistics: Statistics, variant: Variant, smoothing: float = 0.0) -> float:
    """BLEU-4 of all the instances together, 0 to 1 (see the module on `python` and short outputs).

    Args:
        statistics: Of one or more instances.
        variant: The variant that made `statistics`.
        smoothing: Added to matches and totals of every n, `python` only; 1.0 gives the script's sentBLEU.
    """
    matches = statistics.matches[:, :_BLEU_LONGEST].sum(0).tolist()
    totals = statistics.totals[:, :_BLEU_LONGEST].sum(0).tolist()
    length, closest = totals[0], float(statistics.closest.sum())
    if variant == "perl":
        if length == 0:
            return 0.0
        return math.exp(_perl_log_precision(matches, totals) + min(0.0, 1 - closest / length))
    precision = math.fsum(
        math.log(max(match + smoothing, 1e-15) / max(total + smoothing, 1e-9))
        for match, total in zip(matches, totals, strict=True)
    )
    return math.exp(precision / _BLEU_LONGEST + min(0.0, 1 - closest / length))


def _perl_log_precision(matches: Sequence[float], totals: Sequence[float]) -> float:
    """Mean logarithm of the precisions; 1/2, 1/4, ... match where there is none, nothing where there is no n-gram."""
    precision, halves = 0.0, 1.0
    for match, total in zip(matches, totals, strict=True):
        if total and not match:
            halves /= 2
        if total:
            precision += math.log((match or halves) / total)
    return precision / len(totals)


def nist(statistics: Statistics, variant: Variant) -> float:
    """NIST-5 of all the instances together, in bits.

    Raises:
        UserError: where the script divides by zero: `perl` if all references are empty, `python` if there are as many
            n-grams above as below zero for some n, as with a single output of fewer than 5 tokens.
    """
    information, totals = statistics.information.sum(0), statistics.totals.sum(0)
    if variant == "perl":
        if not statistics.reference_tokens.any():
            raise UserError("all references are empty, so NIST is not defined: check the references")
        references = statistics.references.sum() / len(statistics.references)
        reference_length = statistics.reference_tokens.sum() / references
        totals = np.maximum(totals, 1)
    else:
        reference_length = (statistics.reference_tokens / statistics.references).sum()
    if not totals.all():
        raise UserError("the outputs are too short for NIST in the python variant: use --mteval perl")
    ratio = float(statistics.totals[:, 0].sum() / reference_length)
    penalty = math.exp(_NIST_BETA * math.log(min(ratio, 1.0)) ** 2) if ratio > 0 else 0.0
    return penalty * float((information / totals).sum())
