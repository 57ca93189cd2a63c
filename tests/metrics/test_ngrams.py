from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.metrics import ngrams

# No deadline: a busy machine must not fail a test.
quick = settings(deadline=None, max_examples=50)
TOKENS = st.lists(st.sampled_from("abc"), max_size=8)


def test_each_reference_entry_points_to_the_same_ngram_of_its_output() -> None:
    counts = ngrams.count_ngrams([[["a", "b"], ["c"]], [["a"]]], [["a", "a"], ["b"]], max_order=2)
    outputs = [(text, counts.ngrams[ngram], frequency) for text, ngram, frequency in zip(*counts.outputs, strict=True)]
    assert sorted(outputs) == [(0, ("a",), 2), (0, ("a", "a"), 1), (1, ("b",), 1)]
    entries = zip(*counts.references, counts.instance, counts.output_entry, strict=True)
    output_ngrams = {
        (text, counts.ngrams[ngram], instance): outputs[entry][1] if entry < len(outputs) else None
        for text, ngram, _, instance, entry in entries
    }
    # The "a" of the second instance is not in its output, only in that of the first instance.
    assert output_ngrams == {
        (0, ("a",), 0): ("a",),
        (0, ("b",), 0): None,
        (0, ("a", "b"), 0): None,
        (1, ("c",), 0): None,
        (2, ("a",), 1): None,
    }
    assert [counts.order[counts.ngrams.index(ngram)] for ngram in [("a",), ("a", "b")]] == [1, 2]


def test_texts_without_tokens_have_no_ngrams() -> None:
    counts = ngrams.count_ngrams([[[]]], [[]], max_order=3)
    assert counts.ngrams == []
    assert ngrams.sum_per_text(1, 3, counts.outputs, counts.order, counts.outputs.frequency).tolist() == [[0, 0, 0]]


@quick
@given(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=3), TOKENS), min_size=1, max_size=4))
def test_counts_equal_those_of_collections_counter(instances: list[tuple[list[list[str]], list[str]]]) -> None:
    counts = ngrams.count_ngrams([group for group, _ in instances], [output for _, output in instances], max_order=3)
    for rows, texts in (
        (counts.outputs, [output for _, output in instances]),
        (counts.references, [tokens for group, _ in instances for tokens in group]),
    ):
        found: list[Counter[ngrams.Ngram]] = [Counter() for _ in texts]
        for text, ngram, frequency in zip(*rows, strict=True):
            found[text][counts.ngrams[ngram]] = int(frequency)
        assert found == [
            Counter(tuple(tokens[i : i + n]) for n in (1, 2, 3) for i in range(len(tokens) - n + 1)) for tokens in texts
        ]
        sums = ngrams.sum_per_text(len(texts), 3, rows, counts.order, rows.frequency)
        assert sums.tolist() == [[max(0, len(tokens) - n) for n in range(3)] for tokens in texts]
