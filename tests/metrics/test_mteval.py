import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.errors import UserError
from lora_dist.metrics import mteval
from lora_dist.metrics.mteval import Variant

# Without a deadline: a busy machine is no failure.
quick = settings(deadline=None, max_examples=50)
VARIANTS: tuple[Variant, ...] = ("perl", "python")
both = pytest.mark.parametrize("variant", VARIANTS)

WORD = st.sampled_from(["the", "Eagle", "pub", "is", "near", "5", "3.5", "£20", "kid-friendly", ",", ".", "(x)"])
# Long enough to have every n-gram, so that both variants are defined and count alike.
TEXT = st.lists(WORD, min_size=6, max_size=12).map(" ".join)
INSTANCE = st.tuples(st.lists(TEXT, min_size=1, max_size=3), TEXT)
# The first instance is a perfect one, so that there are matches for every n.
SET = st.lists(INSTANCE, min_size=1, max_size=4).map(
    lambda instances: [([instances[0][1]], instances[0][1]), *instances]
)
Instances = list[tuple[list[str], str]]


def bleu(references: list[list[str]], outputs: list[str], variant: Variant, smoothing: float = 0.0) -> float:
    return mteval.bleu(mteval.statistics(references, outputs, variant), variant, smoothing)


def nist(references: list[list[str]], outputs: list[str], variant: Variant) -> float:
    return mteval.nist(mteval.statistics(references, outputs, variant), variant)


def scores(instances: Instances, variant: Variant) -> tuple[float, float]:
    statistics = mteval.statistics([group for group, _ in instances], [output for _, output in instances], variant)
    return mteval.bleu(statistics, variant), mteval.nist(statistics, variant)


# Tokens


@both
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Eagle.", "the eagle ."),
        ("It's near X, 5-star: (yes)", "it's near x , 5 - star : ( yes )"),
        ("£20-25 costs 1,000.50", "£20 - 25 costs 1,000.50"),
        ("kid-friendly . . .", "kid-friendly . . ."),
        ("a.b 3.x x.3", "a . b 3 . x x . 3"),
        ("&quot;a&quot; &amp;lt; &lt;b&gt;<skipped>", '" a " < < b >'),
        ("a\u2028b\u00a0c\td", "a b c d"),
        ("|||", "| | |"),
    ],
)
def test_tokens(text: str, tokens: str, variant: Variant) -> None:
    assert mteval.tokenize(text, variant) == tokens.split(" ")


def test_tokens_on_which_the_variants_part() -> None:
    assert mteval.tokenize("ÉTÉ", "perl") == ["ÉtÉ"]
    assert mteval.tokenize("ÉTÉ", "python") == ["été"]
    assert mteval.tokenize("a\x1cb", "perl") == ["a\x1cb"]
    assert mteval.tokenize("a\x1cb", "python") == ["a", "b"]
    assert mteval.tokenize("", "perl") == []
    assert mteval.tokenize("", "python") == [""]
    assert mteval.tokenize("a pub</seg > and more", "perl") == ["a", "pub"]
    assert mteval.tokenize("a pub</seg>", "python") == ["a", "pub", "<", "/", "seg", ">"]


@pytest.mark.parametrize("text", ["a </doc> b", "a </TSTSET >", "</seg> x <seg id=1>"])
def test_tags_at_which_the_perl_script_stops(text: str) -> None:
    with pytest.raises(UserError, match="use --mteval python"):
        mteval.tokenize(text, "perl")
    mteval.tokenize(text, "python")


# BLEU


@both
def test_bleu_by_hand(variant: Variant) -> None:
    # Matches 5 of 6, 3 of 5, 2 of 4, 1 of 3; as long as the reference.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert bleu([["the cat sat on a mat"]], ["the cat sat on the mat"], variant) == pytest.approx(expected, abs=1e-12)


@both
def test_bleu_punishes_short_outputs_only(variant: Variant) -> None:
    assert bleu([["a b c d e f g h"]], ["a b c d e f"], variant) == pytest.approx(math.exp(1 - 8 / 6), abs=1e-12)
    matched = (6 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** (1 / 4)
    assert bleu([["a b c d e f"]], ["a b c d e f g h"], variant) == pytest.approx(matched, abs=1e-12)


@both
def test_bleu_takes_the_closest_reference_and_the_shorter_of_two(variant: Variant) -> None:
    output = "a b c d e f"
    assert bleu([["a b c d", "a b c d e f g h"]], [output], variant) > 0.5
    statistics = mteval.statistics([["x x x x x x x x", "x x x x"], ["x x x", "x x x x x x x"]], [output] * 2, variant)
    assert statistics.closest.tolist() == [4, 7]


@both
def test_matches_are_clipped_by_one_reference(variant: Variant) -> None:
    statistics = mteval.statistics([["the cat", "the the dog"]], ["the the the the"], variant)
    assert statistics.matches.tolist() == [[2, 1, 0, 0, 0]]


def test_bleu_without_a_match_for_some_n() -> None:
    # 4 unigrams of 4, 1 bigram of 3, no longer ones: perl takes 1/2 and 1/4 match, python next to none.
    references, outputs = [["a b x c y d"]], ["a b c d"]
    brevity = math.exp(1 - 6 / 4)
    perl = brevity * (4 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** (1 / 4)
    assert bleu(references, outputs, "perl") == pytest.approx(perl, abs=1e-12)
    python = brevity * (4 / 4 * 1 / 3 * 1e-15 / 2 * 1e-15 / 1) ** (1 / 4)
    assert bleu(references, outputs, "python") == pytest.approx(python, rel=1e-9)


def test_bleu_smoothing_gives_the_sentence_score() -> None:
    expected = math.exp(1 - 6 / 4) * (5 / 5 * 2 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)
    assert bleu([["a b x c y d"]], ["a b c d"], "python", smoothing=1.0) == pytest.approx(expected, abs=1e-12)


def test_bleu_of_outputs_too_short_for_an_n() -> None:
    # perl leaves out the missing n-grams; python counts 1, 0, -1, -2 of them.
    assert bleu([["pub"]], ["pub"], "perl") == 1
    assert mteval.statistics([["pub"]], ["pub"], "perl").totals.tolist() == [[1, 0, 0, 0, 0]]
    assert mteval.statistics([["pub"]], ["pub"], "python").totals.tolist() == [[1, 0, -1, -2, -3]]


def test_one_empty_output_raises_python_bleu_and_lowers_perl_bleu() -> None:
    references, outputs = [["a b c d e f"], ["x y z"]], ["a b c d e f", ""]
    assert bleu(references, outputs, "perl") == pytest.approx(math.exp(1 - 9 / 6))
    # 7 tokens with the empty one, 5 bigrams, 3 trigrams, 1 four-gram where only 6, 5, 4, 3 match.
    precisions = (6 / 7 * 5 / 5 * 4 / 3 * 3 / 1) ** (1 / 4)
    assert bleu(references, outputs, "python") == pytest.approx(math.exp(1 - 9 / 7) * precisions)


# NIST


def test_nist_by_hand() -> None:
    # 4 tokens in the references: a twice (1 bit), b and c once (2 bits); "a b" and "a c" after a: 1 bit each.
    assert nist([["a b"], ["a c"]], ["a b", "a c"], "perl") == pytest.approx((1 + 2 + 1 + 2) / 4 + (1 + 1) / 2)


@both
def test_nist_of_a_longer_output_by_hand(variant: Variant) -> None:
    # Five different words: log2(5) bits each; longer n-grams follow surely from their beginning: 0 bits.
    assert nist([["a b c d e"]], ["a b c d e"], variant) == pytest.approx(math.log2(5))
    assert nist([["a b c d e"]], ["e d c b a"], variant) == pytest.approx(math.log2(5))
    assert nist([["a b c d e"]], ["a b c x y"], variant) == pytest.approx(math.log2(5) * 3 / 5)


@both
def test_nist_halves_at_two_thirds_of_the_length(variant: Variant) -> None:
    reference = "a b c d e f g h i"
    assert nist([[reference]], ["a b c d e f"], variant) == pytest.approx(math.log2(9) / 2)
    assert nist([[reference]], [reference + " j"], variant) == pytest.approx(math.log2(9) * 9 / 10)


def test_nist_reference_length_is_where_the_variants_part() -> None:
    references = [["a b c d e f"], ["g h i j k l m n o p q r"] * 3]
    outputs = [references[0][0], references[1][0]]
    # perl: 6 + 3 * 12 words by 2 references an instance: 21; python: 6 + 12 = 18, the length of the outputs.
    penalty = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(18 / 21) ** 2)
    assert nist(references, outputs, "perl") == pytest.approx(penalty * nist(references, outputs, "python"))
    assert penalty < 0.95
    # With as many references for each instance they agree.
    references[0] *= 3
    assert nist(references, outputs, "perl") == pytest.approx(nist(references, outputs, "python"))


def test_nist_counts_references_with_repetitions() -> None:
    once, twice = (
        nist([["a b c d e"], group], ["a b c d e"] * 2, "perl") for group in (["a v w x y"], ["a v w x y"] * 2)
    )
    assert once != pytest.approx(twice)


def test_nist_after_a_zero() -> None:
    # "0 b" is one of two bigrams that start with "0"; perl divides by all 10 tokens instead.
    statistics = {
        variant: mteval.statistics([["0 b c d e", "0 x c d e"]], ["0 b y y y"], variant) for variant in VARIANTS
    }
    assert statistics["python"].information[0, 1] == pytest.approx(math.log2(2 / 1))
    assert statistics["perl"].information[0, 1] == pytest.approx(math.log2(10 / 1))


def test_nist_where_it_is_not_defined() -> None:
    with pytest.raises(UserError, match="too short for NIST in the python variant"):
        nist([["a pub"]], ["pub"], "python")
    assert nist([["a pub"]], ["pub"], "perl") > 0
    with pytest.raises(UserError, match="all references are empty"):
        nist([[""], ["", ""]], ["a", "b"], "perl")


@pytest.mark.parametrize("references", [["", "a b c d e"], ["a b c d e", ""]])
def test_empty_references(references: list[str]) -> None:
    statistics = mteval.statistics([references], [""], "perl")
    # perl takes an empty reference for the closest only if it is the first.
    assert statistics.closest.tolist() == [0 if references[0] == "" else 5]
    assert statistics.references.tolist() == [1]
    assert mteval.statistics([references], [""], "python").references.tolist() == [2]


def test_all_outputs_empty() -> None:
    references = [["a b c d e"], ["f g"]]
    assert bleu(references, ["", ""], "perl") == 0
    assert nist(references, ["", ""], "perl") == 0
    assert bleu(references, ["", ""], "python") < 1e-9


# Properties


@quick
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_identical_outputs_and_references(texts: list[str]) -> None:
    for variant in VARIANTS:
        references = [[text] for text in texts]
        assert bleu(references, texts, variant) == pytest.approx(1, abs=1e-12)
        best = nist(references, texts, variant)
        for worse in ([text.replace("the", "xyz").replace("pub", "uvw") for text in texts], [texts[0]] * len(texts)):
            assert nist(references, worse, variant) <= best + 1e-9


@quick
@given(SET, st.randoms())
def test_permuted_references_and_instances(instances: Instances, random: Random) -> None:
    order = list(range(len(instances)))
    random.shuffle(order)
    for variant in VARIANTS:
        moved = [(instances[i][0][::-1], instances[i][1]) for i in order]
        assert scores(moved, variant) == pytest.approx(scores(instances, variant), abs=1e-9)


@quick
@given(SET)
def test_duplicated_instances(instances: Instances) -> None:
    for variant in VARIANTS:
        assert scores(instances * 2, variant) == pytest.approx(scores(instances, variant), abs=1e-9)


@quick
@given(SET)
def test_duplicating_every_reference_changes_nothing(instances: Instances) -> None:
    # Not even NIST, whose n-grams' information is a ratio of counts and whose reference length a mean.
    for variant in VARIANTS:
        twice = [(group * 2, output) for group, output in instances]
        assert scores(twice, variant) == pytest.approx(scores(instances, variant), abs=1e-9)


@quick
@given(SET)
def test_case_does_not_matter(instances: Instances) -> None:
    for variant in VARIANTS:
        upper = [([text.upper() for text in group], output.lower()) for group, output in instances]
        assert scores(upper, variant) == scores(instances, variant)


@quick
@given(SET, st.lists(TEXT, min_size=1, max_size=3))
def test_an_empty_output_never_helps_in_perl(instances: Instances, references: list[str]) -> None:
    before, after = (scores(some, "perl")[0] for some in (instances, [*instances, (references, "")]))
    assert 0 < after <= before + 1e-12 <= 1 + 2e-12


@quick
@given(SET)
def test_only_empty_outputs_score_nothing(instances: Instances) -> None:
    references = [group for group, _ in instances]
    outputs = [""] * len(instances)
    assert bleu(references, outputs, "perl") == nist(references, outputs, "perl") == 0
    assert bleu(references, outputs, "python") < 1e-3
    with pytest.raises(UserError, match="too short for NIST"):
        nist(references, outputs, "python")


@quick
@given(SET, st.lists(TEXT, min_size=1, max_size=3))
def test_an_empty_output_matches_nothing_and_has_no_word(instances: Instances, references: list[str]) -> None:
    groups, outputs = [*(group for group, _ in instances), references], [*(output for _, output in instances), ""]
    for variant, totals in zip(VARIANTS, ([0, 0, 0, 0, 0], [1, 0, -1, -2, -3]), strict=True):
        statistics = mteval.statistics(groups, outputs, variant)
        assert not statistics.matches[-1].any()
        assert not statistics.information[-1].any()
        assert statistics.totals[-1].tolist() == totals


@quick
@given(SET)
def test_scores_are_bounded(instances: Instances) -> None:
    for variant in VARIANTS:
        statistics = mteval.statistics([group for group, _ in instances], [output for _, output in instances], variant)
        assert (statistics.matches <= statistics.totals).all()
        value, information = scores(instances, variant)
        assert 0 < value <= 1 + 1e-12
        # No n-gram carries more information than log2 of the number of words in the references.
        words = sum(len(mteval.tokenize(text, variant)) for group, _ in instances for text in group)
        assert 0 <= information <= 5 * math.log2(words) + 1e-9


@quick
@given(SET)
def test_another_reference_never_loses_a_match(instances: Instances) -> None:
    more = [([*group, "something else and more of it"], output) for group, output in instances]
    for variant in VARIANTS:
        one, other = (
            mteval.statistics([group for group, _ in some], [output for _, output in some], variant).matches
            for some in (instances, more)
        )
        assert (other >= one).all()


@quick
@given(SET, st.data())
def test_statistics_of_a_selection_add_up(instances: Instances, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(instances) - 1), min_size=1))
    for variant in VARIANTS:
        statistics = mteval.statistics([group for group, _ in instances], [o for _, o in instances], variant)
        chosen = statistics.take(np.array(rows))
        assert chosen.totals.tolist() == [statistics.totals[row].tolist() for row in rows]
        # BLEU needs nothing from outside the selection.
        alone = bleu([instances[row][0] for row in rows], [instances[row][1] for row in rows], variant)
        assert mteval.bleu(chosen, variant) == pytest.approx(alone, abs=1e-12)
