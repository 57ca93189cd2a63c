import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.metrics import rouge

# Without a deadline: a busy machine is no failure.
quick = settings(deadline=None, max_examples=50)
TEXT = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


def score(references: list[str], output: str) -> float:
    return float(rouge.sentence_scores([references], [output])[0])


def table_lcs(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook's table."""
    lengths = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            lengths[i + 1, j + 1] = lengths[i, j] + 1 if one == other else max(lengths[i, j + 1], lengths[i + 1, j])
    return int(lengths[-1, -1])


def test_worked_by_hand() -> None:
    # "the pub cheap" is common: precision 3/4, recall 3/5.
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert score(["the pub is cheap here"], "the nice pub cheap") == pytest.approx(expected, abs=1e-15)


def test_order_counts() -> None:
    assert score(["a b c"], "a b c") == 1
    assert score(["a b c"], "c b a") == pytest.approx(1 / 3)


def test_best_precision_and_best_recall_may_come_from_different_references() -> None:
    # "a b" is all of the second reference (recall 1) and of the output 2/3; "a b x" of the first gives precision 1.
    assert score(["a b x y y y", "a b"], "a b x") == 1


def test_empty_texts() -> None:
    assert score(["a b"], "") == 0
    assert score([""], "a") == 0
    assert score([""], "") == 1


def test_no_break_space_is_part_of_a_word() -> None:
    assert score(["1\u00a01/2 miles"], "1 1/2 miles") < 1


def test_one_score_an_output() -> None:
    assert rouge.sentence_scores([["a"], ["b"], ["c"]], ["a", "x", "c"]).tolist() == [1, 0, 1]


@quick
@given(TEXT, TEXT)
def test_bit_parallel_length_is_the_textbook_one(left: str, right: str) -> None:
    common = table_lcs(left.split(" "), right.split(" "))
    precision, recall = common / len(left.split(" ")), common / len(right.split(" "))
    expected = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0.0
    assert score([right], left) == pytest.approx(expected, abs=1e-12)


@quick
@given(TEXT, st.lists(TEXT, min_size=1, max_size=4), TEXT)
def test_another_reference_never_lowers_the_score(output: str, references: list[str], another: str) -> None:
    assert score([*references, another], output) >= score(references, output) - 1e-12


def test_long_texts_are_no_problem() -> None:
    words = " ".join(f"w{number % 50}" for number in range(5000))
    assert score([words], words) == 1
