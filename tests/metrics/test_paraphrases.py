import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from lora_dist.metrics import meteor, paraphrases

TABLE = b"""0.1
a lot of
many
0.2
a lot of
plenty of
0.3
cheap
low priced
0.4
pub
bar
0.5
pub
inn
2.5E-4
u s
us
0.6
?
why
"""


def selected(references: list[str], outputs: list[str], table: bytes = TABLE) -> list[str]:
    """The first and the second phrase of each kept entry."""
    lines = gzip.decompress(paraphrases.select(table, references, outputs)).decode().splitlines()
    assert len(lines) % 3 == 0
    return [f"{left} = {right}" for left, right in zip(lines[1::3], lines[2::3], strict=True)]


def test_unpack(tmp_path: Path) -> None:
    (tmp_path / "table.gz").write_bytes(gzip.compress(TABLE * 1000))
    assert paraphrases.unpack(tmp_path / "table.gz") == TABLE * 1000


def test_either_phrase_may_be_the_outputs() -> None:
    assert selected(["a nice bar"], ["this pub"]) == ["pub = bar"]
    assert selected(["this pub"], ["a nice bar"]) == ["pub = bar"]


def test_both_phrases_in_references_only_are_left_out() -> None:
    assert selected(["a pub and bar"], ["something else"]) == []
    assert selected(["something else"], ["a pub and bar"]) == []


def test_a_phrase_must_stand_together() -> None:
    assert selected(["a lot of food"], ["many things"]) == ["a lot of = many"]
    assert selected(["a of lot food"], ["many things"]) == []
    assert selected(["plenty of"], ["a lot of"]) == ["a lot of = plenty of"]


def test_order_and_probabilities_are_kept() -> None:
    kept = gzip.decompress(paraphrases.select(TABLE, ["bar inn low priced"], ["cheap pub"]))
    assert kept == TABLE[TABLE.index(b"0.3") : TABLE.index(b"2.5E-4")]


@pytest.mark.parametrize(
    ("reference", "output", "kept"),
    [
        ("low-priced", "cheap", ["cheap = low priced"]),  # METEOR makes two words of it,
        ("it is low 'priced'.", "CHEAP", ["cheap = low priced"]),
        ("u . s", "us", ["u s = us"]),
        ("u...s", "us", ["u s = us"]),
        ("u.s.", "us", []),  # but one word of an acronym,
        ("u.s.", "u s", ["u s = us"]),  # which is "us".
    ],
)
def test_texts_are_taken_as_meteor_normalises_them(reference: str, output: str, kept: list[str]) -> None:
    assert selected([reference], [output]) == kept


def test_phrases_without_letters_and_digits_are_kept() -> None:
    assert selected(["why"], ["really ?"]) == ["? = why"]


def test_the_regular_expressions_of_older_pythons_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = selected(["bar many us"], ["a lot of pub u s"])
    assert expected == ["a lot of = many", "pub = bar", "u s = us"]
    for name in ("_ENTRIES", "_ENTRY"):
        pattern = getattr(paraphrases, name).pattern
        monkeypatch.setattr(paraphrases, name, re.compile(pattern.replace(b"*+", b"*")))
    assert selected(["bar many us"], ["a lot of pub u s"]) == expected


@pytest.mark.slow
def test_meteor_counts_the_same_with_and_without_selection() -> None:
    table = paraphrases.unpack(meteor.paraphrase_table())
    lines = table.decode().split("\n")
    entries = range(0, len(lines) - 3, 3 * 1777)
    # Every other entry the other way round, and with the marks that METEOR takes away.
    pairs = [(lines[i + 1], lines[i + 2]) if i % 2 else (lines[i + 2], lines[i + 1]) for i in entries]
    references = [[f"the {one}.", "nothing like it"] for one, _ in pairs]
    outputs = [f"an '{other.replace(' ', '-')}'" for _, other in pairs]
    chosen = paraphrases.select(table, [text for group in references for text in group], outputs)
    assert len(gzip.decompress(chosen)) < len(table) / 5
    with_selection = meteor.statistics(references, outputs, chosen)
    without = meteor.statistics(references, outputs)
    assert np.count_nonzero(without[:, 16:20].any(axis=1)) > len(outputs) / 2
    assert (with_selection == without).all()
