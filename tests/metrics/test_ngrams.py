from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.metrics import ngrams

# Without a deadline: a busy machine is no failure.
quick = settings(deadline=None, max_examples=50)
TOKENS = st.lists(st.sampled_from("abc"), max_size=8)


def test_counts_and_partners() -> None:
    counts = ngrams.count([[["a", "b"], ["c"]], [["a"]]], [["a", "a"], ["b"]], longest=2)
    outputs = [(text, counts.grams[gram], times) for text, gram, times in zip(*counts.outputs, strict=True)]
    assert sorted(outputs) == [(0, ("a",), 2), (0, ("a", "a"), 1), (1, ("b",), 1)]
    rows = zip(*counts.references, counts.instance, counts.partner, strict=True)
    partners = {
        (text, counts.grams[gram], instance): outputs[partner][1] if partner < len(outputs) else None
        for text, gram, times, instance, partner in rows
    }
    # The "a" of the second instance has no partner: its output has none, though the first instance's has.
    assert partners == {
        (0, ("a",), 0): ("a",),
        (0, ("b",), 0): None,
        (0, ("a", "b"), 0): None,
        (1, ("c",), 0): None,
        (2, ("a",), 1): None,
    }
    assert [counts.order[counts.grams.index(gram)] for gram in [("a",), ("a", "b")]] == [1, 2]


def test_no_tokens_at_all() -> None:
    counts = ngrams.count([[[]]], [[]], longest=3)
    assert counts.grams == []
    assert ngrams.per_text(1, 3, counts.outputs, counts.order, counts.outputs.times).tolist() == [[0, 0, 0]]


@quick
@given(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=3), TOKENS), min_size=1, max_size=4))
def test_agrees_with_counting_one_by_one(instances: list[tuple[list[list[str]], list[str]]]) -> None:
    counts = ngrams.count([group for group, _ in instances], [output for _, output in instances], longest=3)
    for rows, texts in (
        (counts.outputs, [output for _, output in instances]),
        (counts.references, [tokens for group, _ in instances for tokens in group]),
    ):
        found: list[Counter[ngrams.Ngram]] = [Counter() for _ in texts]
        for text, gram, times in zip(*rows, strict=True):
            found[text][counts.grams[gram]] = int(times)
        assert found == [
            Counter(tuple(tokens[i : i + n]) for n in (1, 2, 3) for i in range(len(tokens) - n + 1)) for tokens in texts
        ]
        sums = ngrams.per_text(len(texts), 3, rows, counts.order, rows.times)
        assert sums.tolist() == [[max(0, len(tokens) - n) for n in range(3)] for tokens in texts]
