import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.errors import UserError
from lora_dist.metrics import cider

# No deadline: a busy machine must not fail a test.
quick = settings(deadline=None, max_examples=50)
TEXT = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)
INSTANCE = st.tuples(st.lists(TEXT.filter(bool), min_size=1, max_size=3), TEXT)


def test_cider_equals_a_hand_computed_score() -> None:
    # Two instances; "pub" is in both (weight 0), the other tokens in one (weight log 2).
    # Unigrams of the first: output (the: log 2), reference (the, old: log 2 each), cosine 1 / sqrt 2.
    # Bigrams: output "the pub", reference "the old" and "old pub": no match. No longer n-gram matches either.
    # The penalty compares 1 bigram with 2; sigma is 6.
    scores = cider.sentence_cider([["the old pub"], ["a pub"]], ["the pub", "a pub"])
    assert scores[0] == pytest.approx(10 * math.exp(-1 / 72) * math.sqrt(1 / 2) / 4, abs=1e-12)
    # The second equals its reference: cosine 1 for n = 1 and 2; it has no longer n-grams.
    assert scores[1] == pytest.approx(10 * 2 / 4, abs=1e-12)


def test_outputs_equal_to_their_reference_score_ten() -> None:
    texts = ["a b c d", "e f g h", "i j k l"]
    assert cider.sentence_cider([[text] for text in texts], texts) == pytest.approx([10, 10, 10])


def test_the_score_is_the_mean_over_references() -> None:
    others = [["x y z w"], ["u v s t"]]
    one_reference, two_references = (
        cider.sentence_cider([group, *others], ["a b c d", "", ""])[0] for group in (["a b c d"], ["a b c d", "e"])
    )
    assert one_reference == pytest.approx(10)
    assert two_references == pytest.approx(5)


def test_repeated_tokens_are_clipped() -> None:
    groups = [["a b c d"], ["x"]]
    once, repeated = (cider.sentence_cider(groups, [output, ""])[0] for output in ("a", "a a a a"))
    assert 0 < repeated <= once


def test_document_frequencies_come_from_the_whole_set() -> None:
    # "pub" has a positive weight only if some instance lacks it.
    assert cider.sentence_cider([["pub"], ["inn"]], ["pub", ""])[0] > 0
    assert cider.sentence_cider([["pub"], ["pub"]], ["pub", ""])[0] == 0


def test_a_single_instance_scores_zero() -> None:
    assert cider.sentence_cider([["a b c d"]], ["a b c d"]) == pytest.approx([0])


def test_empty_outputs_score_zero() -> None:
    assert cider.sentence_cider([["a b"], ["c d"]], ["", ""]).tolist() == [0, 0]


def test_references_without_any_token_are_refused() -> None:
    with pytest.raises(UserError, match="no reference has a token"):
        cider.sentence_cider([[""], [""]], ["a", "b"])


@quick
@given(st.lists(INSTANCE, min_size=1, max_size=5), st.randoms())
def test_the_order_of_instances_and_references_does_not_matter(
    instances: list[tuple[list[str], str]], random: Random
) -> None:
    order = list(range(len(instances)))
    random.shuffle(order)
    scores = cider.sentence_cider([group for group, _ in instances], [output for _, output in instances])
    permuted = cider.sentence_cider([instances[i][0][::-1] for i in order], [instances[i][1] for i in order])
    assert permuted == pytest.approx(scores[order], abs=1e-9)
    assert np.all((scores >= 0) & (scores <= 10 + 1e-9))
