import math

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import mteval
from lora_dist.metrics.mteval import Variant

VARIANTS: tuple[Variant, ...] = ("perl", "python")
both = pytest.mark.parametrize("variant", VARIANTS)


def bleu(references: list[list[str]], outputs: list[str], variant: Variant, smoothing: float = 0.0) -> float:
    return mteval.corpus_bleu(mteval.ngram_statistics(references, outputs, variant), variant, smoothing)


def nist(references: list[list[str]], outputs: list[str], variant: Variant) -> float:
    return mteval.corpus_nist(mteval.ngram_statistics(references, outputs, variant), variant)


# Tokenization


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
def test_both_variants_tokenize_as_v13a(text: str, tokens: str, variant: Variant) -> None:
    assert mteval.tokenize_v13a(text, variant) == tokens.split(" ")


def test_some_texts_are_tokenized_differently_by_the_variants() -> None:
    assert mteval.tokenize_v13a("ÉTÉ", "perl") == ["ÉtÉ"]
    assert mteval.tokenize_v13a("ÉTÉ", "python") == ["été"]
    assert mteval.tokenize_v13a("a\x1cb", "perl") == ["a\x1cb"]
    assert mteval.tokenize_v13a("a\x1cb", "python") == ["a", "b"]
    assert mteval.tokenize_v13a("", "perl") == []
    assert mteval.tokenize_v13a("", "python") == [""]
    assert mteval.tokenize_v13a("a pub</seg > and more", "perl") == ["a", "pub"]
    assert mteval.tokenize_v13a("a pub</seg>", "python") == ["a", "pub", "<", "/", "seg", ">"]


@pytest.mark.parametrize("text", ["a </doc> b", "a </TSTSET >", "</seg> x <seg id=1>"])
def test_tags_on_which_the_perl_script_fails_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="use --mteval python"):
        mteval.tokenize_v13a(text, "perl")
    mteval.tokenize_v13a(text, "python")


# BLEU


@both
def test_bleu_equals_a_hand_computed_score(variant: Variant) -> None:
    # Matches 5 of 6, 3 of 5, 2 of 4, 1 of 3; no brevity penalty.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert bleu([["the cat sat on a mat"]], ["the cat sat on the mat"], variant) == pytest.approx(expected, abs=1e-12)


@both
def test_the_brevity_penalty_applies_to_short_outputs_only(variant: Variant) -> None:
    assert bleu([["a b c d e f g h"]], ["a b c d e f"], variant) == pytest.approx(math.exp(1 - 8 / 6), abs=1e-12)
    precision = (6 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** (1 / 4)
    assert bleu([["a b c d e f"]], ["a b c d e f g h"], variant) == pytest.approx(precision, abs=1e-12)


@both
def test_of_two_equally_close_references_the_shorter_gives_the_closest_length(variant: Variant) -> None:
    output = "a b c d e f"
    assert bleu([["a b c d", "a b c d e f g h"]], [output], variant) > 0.5
    statistics = mteval.ngram_statistics(
        [["x x x x x x x x", "x x x x"], ["x x x", "x x x x x x x"]], [output] * 2, variant
    )
    assert statistics.closest_length.tolist() == [4, 7]


@both
def test_matches_are_clipped_by_the_largest_count_in_one_reference(variant: Variant) -> None:
    statistics = mteval.ngram_statistics([["the cat", "the the dog"]], ["the the the the"], variant)
    assert statistics.matches.tolist() == [[2, 1, 0, 0, 0]]


def test_an_n_without_match_is_smoothed_as_in_each_script() -> None:
    # Matches 4 of 4, 1 of 3, 0 of 2, 0 of 1. For the last two perl uses 1/2 and 1/4, python 1e-15.
    references, outputs = [["a b x c y d"]], ["a b c d"]
    brevity = math.exp(1 - 6 / 4)
    perl = brevity * (4 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** (1 / 4)
    assert bleu(references, outputs, "perl") == pytest.approx(perl, abs=1e-12)
    python = brevity * (4 / 4 * 1 / 3 * 1e-15 / 2 * 1e-15 / 1) ** (1 / 4)
    assert bleu(references, outputs, "python") == pytest.approx(python, rel=1e-9)


def test_add_one_smoothing_gives_sentbleu() -> None:
    expected = math.exp(1 - 6 / 4) * (5 / 5 * 2 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)
    assert bleu([["a b x c y d"]], ["a b c d"], "python", smoothing=1.0) == pytest.approx(expected, abs=1e-12)


def test_outputs_too_short_for_some_n_have_zero_or_negative_totals() -> None:
    # perl skips an n without n-grams; python counts 1, 0, -1, -2 n-grams.
    assert bleu([["pub"]], ["pub"], "perl") == 1
    assert mteval.ngram_statistics([["pub"]], ["pub"], "perl").totals.tolist() == [[1, 0, 0, 0, 0]]
    assert mteval.ngram_statistics([["pub"]], ["pub"], "python").totals.tolist() == [[1, 0, -1, -2, -3]]


def test_one_empty_output_increases_python_bleu_and_decreases_perl_bleu() -> None:
    references, outputs = [["a b c d e f"], ["x y z"]], ["a b c d e f", ""]
    assert bleu(references, outputs, "perl") == pytest.approx(math.exp(1 - 9 / 6))
    # Totals 7 (with the empty token), 5, 3, 1, but matches 6, 5, 4, 3.
    precisions = (6 / 7 * 5 / 5 * 4 / 3 * 3 / 1) ** (1 / 4)
    assert bleu(references, outputs, "python") == pytest.approx(math.exp(1 - 9 / 7) * precisions)


# NIST


def test_nist_equals_a_hand_computed_score() -> None:
    # 4 reference tokens: a twice (1 bit), b and c once (2 bits each); "a b" and "a c": 1 bit each.
    assert nist([["a b"], ["a c"]], ["a b", "a c"], "perl") == pytest.approx((1 + 2 + 1 + 2) / 4 + (1 + 1) / 2)


@both
def test_nist_of_a_longer_output_equals_a_hand_computed_score(variant: Variant) -> None:
    # Five distinct tokens carry log2(5) bits each; longer n-grams are certain given their prefix: 0 bits.
    assert nist([["a b c d e"]], ["a b c d e"], variant) == pytest.approx(math.log2(5))
    assert nist([["a b c d e"]], ["e d c b a"], variant) == pytest.approx(math.log2(5))
    assert nist([["a b c d e"]], ["a b c x y"], variant) == pytest.approx(math.log2(5) * 3 / 5)


@both
def test_the_nist_penalty_is_one_half_at_two_thirds_of_the_length(variant: Variant) -> None:
    reference = "a b c d e f g h i"
    assert nist([[reference]], ["a b c d e f"], variant) == pytest.approx(math.log2(9) / 2)
    assert nist([[reference]], [reference + " j"], variant) == pytest.approx(math.log2(9) * 9 / 10)


def test_the_variants_differ_in_the_reference_length_of_nist() -> None:
    references = [["a b c d e f"], ["g h i j k l m n o p q r"] * 3]
    outputs = [references[0][0], references[1][0]]
    # perl: (6 + 3 * 12) tokens / 2 references per instance = 21; python: 6 + 12 = 18, the length of the outputs.
    penalty = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(18 / 21) ** 2)
    assert nist(references, outputs, "perl") == pytest.approx(penalty * nist(references, outputs, "python"))
    assert penalty < 0.95
    # They agree if all instances have the same number of references.
    references[0] *= 3
    assert nist(references, outputs, "perl") == pytest.approx(nist(references, outputs, "python"))


def test_repeated_references_are_counted_repeatedly_in_nist() -> None:
    once, twice = (
        nist([["a b c d e"], group], ["a b c d e"] * 2, "perl") for group in (["a v w x y"], ["a v w x y"] * 2)
    )
    assert once != pytest.approx(twice)


def test_perl_computes_the_information_after_a_zero_token_as_of_a_unigram() -> None:
    # "0 b" is one of two bigrams that start with "0"; perl uses the 10 tokens of the references instead of 2.
    statistics = {
        variant: mteval.ngram_statistics([["0 b c d e", "0 x c d e"]], ["0 b y y y"], variant) for variant in VARIANTS
    }
    assert statistics["python"].information[0, 1] == pytest.approx(math.log2(2 / 1))
    assert statistics["perl"].information[0, 1] == pytest.approx(math.log2(10 / 1))


def test_undefined_nist_is_an_error() -> None:
    with pytest.raises(UserError, match="too short for NIST in the python variant"):
        nist([["a pub"]], ["pub"], "python")
    assert nist([["a pub"]], ["pub"], "perl") > 0
    with pytest.raises(UserError, match="all references are empty"):
        nist([[""], ["", ""]], ["a", "b"], "perl")


@pytest.mark.parametrize("references", [["", "a b c d e"], ["a b c d e", ""]])
def test_empty_references_are_counted_as_in_each_script(references: list[str]) -> None:
    statistics = mteval.ngram_statistics([references], [""], "perl")
    # In perl an empty reference can be the closest only if it is the first.
    assert statistics.closest_length.tolist() == [0 if references[0] == "" else 5]
    assert statistics.num_references.tolist() == [1]
    assert mteval.ngram_statistics([references], [""], "python").num_references.tolist() == [2]


def test_two_empty_outputs_score_zero() -> None:
    references = [["a b c d e"], ["f g"]]
    assert bleu(references, ["", ""], "perl") == 0
    assert nist(references, ["", ""], "perl") == 0
    assert bleu(references, ["", ""], "python") < 1e-9
