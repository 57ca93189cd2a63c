import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.metrics import rouge

# No deadline: a busy machine must not fail a test.
quick = settings(deadline=None, max_examples=50)
TEXT = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


def score(references: list[str], output: str) -> float:
    return float(rouge.sentence_rouge_l([references], [output])[0])


def lcs_by_dynamic_programming(left: list[str], right: list[str]) -> int:
    """Compute the length of the longest common subsequence by dynamic programming."""
    lengths = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            lengths[i + 1, j + 1] = lengths[i, j] + 1 if one == other else max(lengths[i, j + 1], lengths[i + 1, j])
    return int(lengths[-1, -1])


def test_rouge_l_equals_a_hand_computed_score() -> None:
    # The LCS is "the pub cheap": precision 3/4, recall 3/5.
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert score(["the pub is cheap here"], "the nice pub cheap") == pytest.approx(expected, abs=1e-15)


def test_the_order_of_tokens_matters() -> None:
    assert score(["a b c"], "a b c") == 1
    assert score(["a b c"], "c b a") == pytest.approx(1 / 3)


def test_best_precision_and_best_recall_may_come_from_different_references() -> None:
    # "a b" gives recall 1 with the second reference and precision 2/3; "a b x" gives precision 1 with the first.
    assert score(["a b x y y y", "a b"], "a b x") == 1


def test_an_empty_text_matches_only_an_empty_text() -> None:
    assert score(["a b"], "") == 0
    assert score([""], "a") == 0
    assert score([""], "") == 1


def test_a_no_break_space_is_part_of_a_token() -> None:
    assert score(["1\u00a01/2 miles"], "1 1/2 miles") < 1


def test_there_is_one_score_per_output() -> None:
    assert rouge.sentence_rouge_l([["a"], ["b"], ["c"]], ["a", "x", "c"]).tolist() == [1, 0, 1]


@quick
@given(TEXT, TEXT)
def test_the_bit_parallel_lcs_length_equals_that_of_dynamic_programming(left: str, right: str) -> None:
    lcs = lcs_by_dynamic_programming(left.split(" "), right.split(" "))
    precision, recall = lcs / len(left.split(" ")), lcs / len(right.split(" "))
    expected = 2.44 * precision * recall / (recall + 1.44 * precision) if lcs else 0.0
    assert score([right], left) == pytest.approx(expected, abs=1e-12)


@quick
@given(TEXT, st.lists(TEXT, min_size=1, max_size=4), TEXT)
def test_another_reference_never_decreases_the_score(output: str, references: list[str], another: str) -> None:
    assert score([*references, another], output) >= score(references, output) - 1e-12


def test_a_long_text_equal_to_its_reference_scores_one() -> None:
    text = " ".join(f"w{number % 50}" for number in range(5000))
    assert score([text], text) == 1
