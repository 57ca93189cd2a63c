import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.errors import UserError
from lora_dist.metrics import cider

# Without a deadline: a busy machine is no failure.
quick = settings(deadline=None, max_examples=50)
WORDS = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)
INSTANCE = st.tuples(st.lists(WORDS.filter(bool), min_size=1, max_size=3), WORDS)


def test_worked_by_hand() -> None:
    # Two instances; "pub" is in both (weight 0), the other words in one (weight log 2).
    # Unigrams of the first: output (the: log 2), reference (the, old: log 2 each), cosine 1 / sqrt 2.
    # Bigrams: output "the pub"; reference "the old", "old pub": none in common. No longer n-grams in common either.
    # The penalty compares 1 bigram with 2; sigma is 6.
    scores = cider.sentence_scores([["the old pub"], ["a pub"]], ["the pub", "a pub"])
    assert scores[0] == pytest.approx(10 * math.exp(-1 / 72) * math.sqrt(1 / 2) / 4, abs=1e-12)
    # The second is its reference: cosine 1 for n = 1 and 2; it has no longer n-grams.
    assert scores[1] == pytest.approx(10 * 2 / 4, abs=1e-12)


def test_perfect_outputs_of_four_words_get_ten() -> None:
    texts = ["a b c d", "e f g h", "i j k l"]
    assert cider.sentence_scores([[text] for text in texts], texts) == pytest.approx([10, 10, 10])


def test_mean_over_references() -> None:
    others = [["x y z w"], ["u v s t"]]
    alone, with_other = (
        cider.sentence_scores([group, *others], ["a b c d", "", ""])[0] for group in (["a b c d"], ["a b c d", "e"])
    )
    assert alone == pytest.approx(10)
    assert with_other == pytest.approx(5)


def test_repeating_a_word_is_clipped() -> None:
    groups = [["a b c d"], ["x"]]
    once, often = (cider.sentence_scores(groups, [output, ""])[0] for output in ("a", "a a a a"))
    assert 0 < often <= once


def test_weights_come_from_the_whole_set() -> None:
    # "pub" is worth something only while some instance lacks it.
    assert cider.sentence_scores([["pub"], ["inn"]], ["pub", ""])[0] > 0
    assert cider.sentence_scores([["pub"], ["pub"]], ["pub", ""])[0] == 0


def test_a_single_instance_scores_zero() -> None:
    assert cider.sentence_scores([["a b c d"]], ["a b c d"]) == pytest.approx([0])


def test_empty_outputs() -> None:
    assert cider.sentence_scores([["a b"], ["c d"]], ["", ""]).tolist() == [0, 0]


def test_references_without_any_word_are_refused() -> None:
    with pytest.raises(UserError, match="no reference holds a word"):
        cider.sentence_scores([[""], [""]], ["a", "b"])


@quick
@given(st.lists(INSTANCE, min_size=1, max_size=5), st.randoms())
def test_order_does_not_matter(instances: list[tuple[list[str], str]], random: Random) -> None:
    order = list(range(len(instances)))
    random.shuffle(order)
    scores = cider.sentence_scores([group for group, _ in instances], [output for _, output in instances])
    moved = cider.sentence_scores([instances[i][0][::-1] for i in order], [instances[i][1] for i in order])
    assert moved == pytest.approx(scores[order], abs=1e-9)
    assert np.all((scores >= 0) & (scores <= 10 + 1e-9))
