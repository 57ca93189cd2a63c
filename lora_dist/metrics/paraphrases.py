"""METEOR's paraphrase table, cut down to what a set of texts can use.

The table (paraphrase-en.gz of METEOR 1.5) holds 5.3 million pairs of phrases. Loading it takes METEOR ten seconds,
most of the time of scoring the E2E test set, for the few thousand pairs that can match. To leave out pairs that
cannot changes no score: METEOR comes with a program for it, FilterParaphrase, and takes the result with -a.
"""

import gzip
import re
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

# Possessive repetition takes half the time, where the language has it.
_LINE = rb"[^\n]*+\n" if sys.version_info >= (3, 11) else rb"[^\n]*\n"
_TEXT = _LINE[:-2]
# An entry is three lines: a probability and two phrases. Entries with the same first phrase stand together.
_ENTRIES = re.compile(rb"%b(%b)\n%b(?:%b\1\n%b)*" % (_LINE, _TEXT, _LINE, _LINE, _LINE))
_ENTRY = re.compile(rb"%b%b(%b)\n" % (_LINE, _LINE, _TEXT))
_RUNS = re.compile(rb"[0-9a-z]+")
_DOTS = re.compile(rb"\.\.+")
_BEGINNING = 4
"""Runs of a phrase that are looked for, one after the other."""


def unpack(path: Path) -> bytes:
    """The text of the table. Most of the time it does without the interpreter's lock, so other threads can go on."""
    packed = path.read_bytes()
    # A gzip file ends with the size of its text. One buffer of that size saves taking the lock for each larger one.
    return zlib.decompress(packed, wbits=31, bufsize=int.from_bytes(packed[-4:], "little"))


def select(table: bytes, references: Iterable[str], outputs: Iterable[str]) -> bytes:
    """The entries with one phrase that may stand in an output and one that may in a reference, in order, gzipped.

    Args:
        table: The text of the table.
        references: All references, as `ptb.tokenize` returns them.
        outputs: All outputs, likewise.
    """
    in_references, in_outputs = _beginnings(references), _beginnings(outputs)
    words = _Words(in_references | in_outputs)
    kept = []
    for entries in _ENTRIES.finditer(table):
        if not words.know(entries[1]):
            continue
        beginning = _beginning(entries[1])
        one_in_reference, one_in_output = beginning in in_references, beginning in in_outputs
        if not (one_in_reference or one_in_output):
            continue
        for entry in _ENTRY.finditer(table, *entries.span()):
            if words.know(entry[1]):
                other = _beginning(entry[1])
                if (one_in_reference and other in in_outputs) or (one_in_output and other in in_references):
                    kept.append(entry[0])
    return gzip.compress(b"".join(kept), compresslevel=0)


def _runs(text: bytes) -> list[bytes]:
    """The runs of ASCII letters and digits, where a single dot does not end a run.

    They are the same before and after METEOR normalises a text, which it does before it looks for phrases: it replaces
    other characters or puts blanks around them, but takes away the dots of an acronym ("p.m." becomes "pm").
    """
    return _RUNS.findall(_DOTS.sub(b" ", text).replace(b".", b""))


def _beginning(phrase: bytes) -> bytes:
    return b" ".join(_runs(phrase)[:_BEGINNING])


def _beginnings(texts: Iterable[str]) -> set[bytes]:
    """The beginnings of all phrases that the texts may hold."""
    beginnings = {b""}
    for text in texts:
        runs = _runs(text.lower().encode())
        for n in range(1, _BEGINNING + 1):
            beginnings.update(map(b" ".join, zip(*(runs[start:] for start in range(n)), strict=False)))
    return beginnings


class _Words(dict[bytes, bool]):
    """Whether the runs of a word are all known, found out once for each word of the table."""

    def __init__(self, runs: set[bytes]) -> None:
        super().__init__()
        self._runs = runs

    def __missing__(self, word: bytes) -> bool:
        self[word] = known = self._runs.issuperset(_runs(word))
        return known

    def know(self, phrase: bytes) -> bool:
        """Whether all words of the phrase are known."""
        return all(map(self.__getitem__, phrase.split(b" ")))
