"""Properties of BLEU and NIST that hold for any corpus."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.errors import UserError
from lora_dist.metrics import mteval
from lora_dist.metrics.mteval import Variant

# No deadline: a busy machine must not fail a test.
quick = settings(deadline=None, max_examples=50)
VARIANTS: tuple[Variant, ...] = ("perl", "python")

TOKEN = st.sampled_from(["the", "Eagle", "pub", "is", "near", "5", "3.5", "£20", "kid-friendly", ",", ".", "(x)"])
# Long enough for n-grams of all n, so that both variants are defined and count the same.
TEXT = st.lists(TOKEN, min_size=6, max_size=12).map(" ".join)
INSTANCE = st.tuples(st.lists(TEXT, min_size=1, max_size=3), TEXT)
# The first instance is its own reference, so that there are matches for all n.
SET = st.lists(INSTANCE, min_size=1, max_size=4).map(
    lambda instances: [([instances[0][1]], instances[0][1]), *instances]
)
Instances = list[tuple[list[str], str]]


def bleu(references: list[list[str]], outputs: list[str], variant: Variant, smoothing: float = 0.0) -> float:
    return mteval.corpus_bleu(mteval.ngram_statistics(references, outputs, variant), variant, smoothing)


def nist(references: list[list[str]], outputs: list[str], variant: Variant) -> float:
    return mteval.corpus_nist(mteval.ngram_statistics(references, outputs, variant), variant)


def bleu_and_nist(instances: Instances, variant: Variant) -> tuple[float, float]:
    statistics = mteval.ngram_statistics(
        [group for group, _ in instances], [output for _, output in instances], variant
    )
    return mteval.corpus_bleu(statistics, variant), mteval.corpus_nist(statistics, variant)


@quick
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_outputs_equal_to_their_references_have_the_maximum_score(texts: list[str]) -> None:
    for variant in VARIANTS:
        references = [[text] for text in texts]
        assert bleu(references, texts, variant) == pytest.approx(1, abs=1e-12)
        maximum = nist(references, texts, variant)
        for worse in ([text.replace("the", "xyz").replace("pub", "uvw") for text in texts], [texts[0]] * len(texts)):
            assert nist(references, worse, variant) <= maximum + 1e-9


@quick
@given(SET, st.randoms())
def test_the_order_of_references_and_instances_does_not_matter(instances: Instances, random: Random) -> None:
    order = list(range(len(instances)))
    random.shuffle(order)
    for variant in VARIANTS:
        permuted = [(instances[i][0][::-1], instances[i][1]) for i in order]
        assert bleu_and_nist(permuted, variant) == pytest.approx(bleu_and_nist(instances, variant), abs=1e-9)


@quick
@given(SET)
def test_duplicating_every_instance_changes_nothing(instances: Instances) -> None:
    for variant in VARIANTS:
        assert bleu_and_nist(instances * 2, variant) == pytest.approx(bleu_and_nist(instances, variant), abs=1e-9)


@quick
@given(SET)
def test_duplicating_every_reference_changes_nothing(instances: Instances) -> None:
    # NIST too: information is a ratio of counts, and the reference length is a mean.
    for variant in VARIANTS:
        twice = [(group * 2, output) for group, output in instances]
        assert bleu_and_nist(twice, variant) == pytest.approx(bleu_and_nist(instances, variant), abs=1e-9)


@quick
@given(SET)
def test_case_does_not_matter(instances: Instances) -> None:
    for variant in VARIANTS:
        upper = [([text.upper() for text in group], output.lower()) for group, output in instances]
        assert bleu_and_nist(upper, variant) == bleu_and_nist(instances, variant)


@quick
@given(SET, st.lists(TEXT, min_size=1, max_size=3))
def test_an_empty_output_never_increases_perl_bleu(instances: Instances, references: list[str]) -> None:
    before, after = (bleu_and_nist(some, "perl")[0] for some in (instances, [*instances, (references, "")]))
    assert 0 < after <= before + 1e-12 <= 1 + 2e-12


@quick
@given(SET)
def test_only_empty_outputs_score_zero(instances: Instances) -> None:
    references = [group for group, _ in instances]
    outputs = [""] * len(instances)
    assert bleu(references, outputs, "perl") == nist(references, outputs, "perl") == 0
    assert bleu(references, outputs, "python") < 1e-3
    with pytest.raises(UserError, match="too short for NIST"):
        nist(references, outputs, "python")


@quick
@given(SET, st.lists(TEXT, min_size=1, max_size=3))
def test_an_empty_output_has_no_matches_and_the_totals_of_its_variant(
    instances: Instances, references: list[str]
) -> None:
    groups, outputs = [*(group for group, _ in instances), references], [*(output for _, output in instances), ""]
    for variant, totals in zip(VARIANTS, ([0, 0, 0, 0, 0], [1, 0, -1, -2, -3]), strict=True):
        statistics = mteval.ngram_statistics(groups, outputs, variant)
        assert not statistics.matches[-1].any()
        assert not statistics.information[-1].any()
        assert statistics.totals[-1].tolist() == totals


@quick
@given(SET)
def test_scores_are_bounded(instances: Instances) -> None:
    for variant in VARIANTS:
        statistics = mteval.ngram_statistics(
            [group for group, _ in instances], [output for _, output in instances], variant
        )
        assert (statistics.matches <= statistics.totals).all()
        value, information = bleu_and_nist(instances, variant)
        assert 0 < value <= 1 + 1e-12
        # The information of an n-gram is at most log2 of the number of reference tokens.
        num_tokens = sum(len(mteval.tokenize_v13a(text, variant)) for group, _ in instances for text in group)
        assert 0 <= information <= 5 * math.log2(num_tokens) + 1e-9


@quick
@given(SET)
def test_another_reference_never_decreases_matches(instances: Instances) -> None:
    more = [([*group, "something else and more of it"], output) for group, output in instances]
    for variant in VARIANTS:
        one, other = (
            mteval.ngram_statistics([group for group, _ in some], [output for _, output in some], variant).matches
            for some in (instances, more)
        )
        assert (other >= one).all()


@quick
@given(SET, st.data())
def test_the_statistics_of_a_subset_give_the_bleu_of_the_subset(instances: Instances, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(instances) - 1), min_size=1))
    for variant in VARIANTS:
        statistics = mteval.ngram_statistics([group for group, _ in instances], [o for _, o in instances], variant)
        subset = statistics.take(np.array(indices))
        assert subset.totals.tolist() == [statistics.totals[i].tolist() for i in indices]
        # BLEU depends on nothing outside the subset.
        expected = bleu([instances[i][0] for i in indices], [instances[i][1] for i in indices], variant)
        assert mteval.corpus_bleu(subset, variant) == pytest.approx(expected, abs=1e-12)
