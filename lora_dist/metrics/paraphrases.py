"""Filter METEOR's paraphrase table down to the entries that a set of texts can match.

The table (paraphrase-en.gz of METEOR 1.5) has 5.3 million pairs of phrases. Loading it takes METEOR ten seconds, most
of the time of scoring the E2E test set, and only a few thousand pairs can match. Removing pairs that cannot match
changes no score: METEOR ships a program for it, FilterParaphrase, and reads the result with -a.
"""

import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

_TEXT = rb"[^\n]*+"  # the possessive quantifier halves the time
_LINE = _TEXT + rb"\n"
# An entry is three lines: a probability and two phrases. Entries with the same first phrase are consecutive.
_ENTRIES = re.compile(rb"%b(%b)\n%b(?:%b\1\n%b)*" % (_LINE, _TEXT, _LINE, _LINE, _LINE))
_ENTRY = re.compile(rb"%b%b(%b)\n" % (_LINE, _LINE, _TEXT))
_TOKEN = re.compile(rb"[0-9a-z]+")
_DOTS = re.compile(rb"\.\.+")
_PREFIX_LENGTH = 4
"""Tokens at the start of a phrase that must occur consecutively in a text."""


def decompress_table(path: Path) -> bytes:
    """Decompress the paraphrase table. Most of the time is spent without the GIL, so other threads run meanwhile."""
    compressed = path.read_bytes()
    # The last four bytes of a gzip file are the size of its content. A buffer of that size never has to grow, and
    # growing it takes the GIL.
    return zlib.decompress(compressed, wbits=31, bufsize=int.from_bytes(compressed[-4:], "little"))


def filter_paraphrases(table: bytes, references: Iterable[str], outputs: Iterable[str]) -> bytes:
    """Keep the entries that can match one phrase in an output and the other in a reference; return them gzipped.

    The order is kept. The filter is conservative: it compares only the first tokens of a phrase.

    Args:
        table: The decompressed table.
        references: All references, as `ptb.ptb_tokenize` returns them.
        outputs: All outputs, likewise.
    """
    in_references, in_outputs = _text_prefixes(references), _text_prefixes(outputs)
    vocabulary = _Vocabulary(in_references | in_outputs)
    kept = []
    for entries in _ENTRIES.finditer(table):
        if not vocabulary.covers(entries[1]):
            continue
        prefix = _phrase_prefix(entries[1])
        first_in_reference, first_in_output = prefix in in_references, prefix in in_outputs
        if not (first_in_reference or first_in_output):
            continue
        for entry in _ENTRY.finditer(table, *entries.span()):
            if vocabulary.covers(entry[1]):
                second = _phrase_prefix(entry[1])
                if (first_in_reference and second in in_outputs) or (first_in_output and second in in_references):
                    kept.append(entry[0])
    return gzip.compress(b"".join(kept), compresslevel=0)


def _tokens(text: bytes) -> list[bytes]:
    """Return the sequences of ASCII letters and digits, where a single dot does not end a sequence.

    They are the same before and after METEOR's normalization, which runs before its phrase matching. It replaces other
    characters or surrounds them with spaces, but removes the dots of an acronym ("p.m." becomes "pm").
    """
    return _TOKEN.findall(_DOTS.sub(b" ", text).replace(b".", b""))


def _phrase_prefix(phrase: bytes) -> bytes:
    return b" ".join(_tokens(phrase)[:_PREFIX_LENGTH])


def _text_prefixes(texts: Iterable[str]) -> set[bytes]:
    """Return the prefixes of all phrases that may occur in the texts: their n-grams up to `_PREFIX_LENGTH`."""
    prefixes = {b""}
    for text in texts:
        tokens = _tokens(text.lower().encode())
        for n in range(1, _PREFIX_LENGTH + 1):
            prefixes.update(map(b" ".join, zip(*(tokens[start:] for start in range(n)), strict=False)))
    return prefixes


class _Vocabulary(dict[bytes, bool]):
    """Cache of whether all tokens of a word of the table occur in the texts."""

    def __init__(self, tokens: set[bytes]) -> None:
        super().__init__()
        self._tokens = tokens

    def __missing__(self, word: bytes) -> bool:
        self[word] = known = self._tokens.issuperset(_tokens(word))
        return known

    def covers(self, phrase: bytes) -> bool:
        """Return whether all tokens of the phrase occur in the texts."""
        return all(map(self.__getitem__, phrase.split(b" ")))
