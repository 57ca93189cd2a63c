import gzip
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


def kept_entries(references: list[str], outputs: list[str], table: bytes = TABLE) -> list[str]:
    """Return the two phrases of each kept entry."""
    lines = gzip.decompress(paraphrases.filter_paraphrases(table, references, outputs)).decode().splitlines()
    assert len(lines) % 3 == 0
    return [f"{left} = {right}" for left, right in zip(lines[1::3], lines[2::3], strict=True)]


def test_the_table_is_decompressed(tmp_path: Path) -> None:
    (tmp_path / "table.gz").write_bytes(gzip.compress(TABLE * 1000))
    assert paraphrases.decompress_table(tmp_path / "table.gz") == TABLE * 1000


def test_either_phrase_may_be_in_the_output() -> None:
    assert kept_entries(["a nice bar"], ["this pub"]) == ["pub = bar"]
    assert kept_entries(["this pub"], ["a nice bar"]) == ["pub = bar"]


def test_entries_with_both_phrases_on_the_same_side_are_removed() -> None:
    assert kept_entries(["a pub and bar"], ["something else"]) == []
    assert kept_entries(["something else"], ["a pub and bar"]) == []


def test_the_tokens_of_a_phrase_must_be_consecutive() -> None:
    assert kept_entries(["a lot of food"], ["many things"]) == ["a lot of = many"]
    assert kept_entries(["a of lot food"], ["many things"]) == []
    assert kept_entries(["plenty of"], ["a lot of"]) == ["a lot of = plenty of"]


def test_the_order_and_the_probabilities_are_kept() -> None:
    kept = gzip.decompress(paraphrases.filter_paraphrases(TABLE, ["bar inn low priced"], ["cheap pub"]))
    assert kept == TABLE[TABLE.index(b"0.3") : TABLE.index(b"2.5E-4")]


@pytest.mark.parametrize(
    ("reference", "output", "kept"),
    [
        ("low-priced", "cheap", ["cheap = low priced"]),  # METEOR splits it into two tokens,
        ("it is low 'priced'.", "CHEAP", ["cheap = low priced"]),
        ("u . s", "us", ["u s = us"]),
        ("u...s", "us", ["u s = us"]),
        ("u.s.", "us", []),  # but joins an acronym into one,
        ("u.s.", "u s", ["u s = us"]),  # which is "us".
    ],
)
def test_texts_are_matched_as_meteor_normalizes_them(reference: str, output: str, kept: list[str]) -> None:
    assert kept_entries([reference], [output]) == kept


def test_phrases_without_letters_and_digits_are_kept() -> None:
    assert kept_entries(["why"], ["really ?"]) == ["? = why"]


def test_entries_are_kept_in_the_tables_order() -> None:
    assert kept_entries(["bar many us"], ["a lot of pub u s"]) == ["a lot of = many", "pub = bar", "u s = us"]


@pytest.mark.slow
def test_meteor_statistics_are_equal_with_the_filtered_and_the_full_table() -> None:
    table = paraphrases.decompress_table(meteor.paraphrase_table_path())
    lines = table.decode().split("\n")
    entries = range(0, len(lines) - 3, 3 * 1777)
    # Every other entry with the phrases swapped, and with punctuation that METEOR removes.
    pairs = [(lines[i + 1], lines[i + 2]) if i % 2 else (lines[i + 2], lines[i + 1]) for i in entries]
    references = [[f"the {one}.", "nothing like it"] for one, _ in pairs]
    outputs = [f"an '{other.replace(' ', '-')}'" for _, other in pairs]
    filtered = paraphrases.filter_paraphrases(table, [text for group in references for text in group], outputs)
    assert len(gzip.decompress(filtered)) < len(table) / 5
    with_filtered = meteor.alignment_statistics(references, outputs, filtered)
    with_full = meteor.alignment_statistics(references, outputs)
    assert np.count_nonzero(with_full[:, 16:20].any(axis=1)) > len(outputs) / 2
    assert (with_filtered == with_full).all()
