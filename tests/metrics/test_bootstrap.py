import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lora_dist.cli.main import main
from lora_dist.metrics import bootstrap, mteval, suite

pytestmark = pytest.mark.usefixtures("scored_once")
N = 40


@cache
def ngrams_of_equal_texts(count: int) -> mteval.NgramStatistics:
    texts = ["a b c d e f"] * count
    return mteval.ngram_statistics([[text] for text in texts], texts, "perl")


def statistics_with(rouge: np.ndarray) -> suite.CorpusStatistics:
    """Statistics with the given ROUGE_L, all else equal for all instances."""
    return suite.CorpusStatistics(
        "perl", ngrams_of_equal_texts(len(rouge)), np.ones((len(rouge), 23)), rouge, rouge * 10
    )


@pytest.fixture(scope="module")
def rouge() -> np.ndarray:
    return np.random.default_rng(1).random(N)


def test_a_resample_scores_like_a_corpus_of_the_drawn_instances() -> None:
    references = [["a b c d e f"], ["a b x y z w", "u v w"], ["k l m n o"]]
    outputs = ["a b c d x y", "a b x y", "k l m n o p"]
    counts = mteval.ngram_statistics(references, outputs, "perl")
    rouge = np.array([0.1, 0.5, 0.9])
    statistics = suite.CorpusStatistics("perl", counts, np.ones((3, 23)), rouge, rouge)
    samples = bootstrap.bootstrap_scores(statistics, 50, seed=7)
    generator = np.random.default_rng(7)
    for sample in samples:
        indices = generator.integers(3, size=3)
        drawn = mteval.ngram_statistics([references[i] for i in indices], [outputs[i] for i in indices], "perl")
        assert sample[0] == pytest.approx(mteval.corpus_bleu(drawn, "perl"))
        assert sample[3] == pytest.approx(rouge[indices].mean())


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(rouge: np.ndarray) -> None:
    samples = bootstrap.bootstrap_scores(statistics_with(rouge), 2000, seed=0)
    low, high = bootstrap.confidence_intervals(samples)["ROUGE_L"]
    error = rouge.std() / np.sqrt(N)
    assert (low, high) == pytest.approx((rouge.mean() - 1.96 * error, rouge.mean() + 1.96 * error), abs=0.2 * error)


def test_the_same_seed_gives_the_same_resamples(rouge: np.ndarray) -> None:
    first, again, other = (bootstrap.bootstrap_scores(statistics_with(rouge), 50, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_two_systems_are_resampled_in_pairs(rouge: np.ndarray) -> None:
    # One system is better by the same amount on each instance, hence by that amount in each resample.
    samples = [bootstrap.bootstrap_scores(statistics_with(scores), 200, seed=0) for scores in (rouge + 0.01, rouge)]
    differences = samples[0] - samples[1]
    assert differences[:, 3] == pytest.approx(0.01)
    p = bootstrap.p_values(np.array([0, 0, 0, 0.01, 0.1]), differences)
    assert p["ROUGE_L"] == pytest.approx(1 / 201)
    assert p["BLEU"] == 1  # never better


def test_p_values_equal_hand_computed_ones() -> None:
    # Better by 2 on the whole set; in 4 resamples better twice, equal once and worse once.
    samples = np.array([3.0, 1.0, 0.0, -1.0])[:, None] * np.ones(5)
    p = bootstrap.p_values(np.array([2.0, 2.0, 2.0, -2.0, 0.0]), samples)
    assert p == pytest.approx({"BLEU": 3 / 5, "NIST": 3 / 5, "METEOR": 3 / 5, "ROUGE_L": 4 / 5, "CIDEr": 1})


def test_p_values_are_calibrated_under_the_null_hypothesis() -> None:
    generator = np.random.default_rng(5)
    small = 0
    for trial in range(100):
        one, other = generator.random(N), generator.random(N)
        statistics = [statistics_with(rouge) for rouge in (one, other)]
        samples = [bootstrap.bootstrap_scores(system, 99, seed=trial) for system in statistics]
        differences = np.full(5, (one - other).mean())
        small += bootstrap.p_values(differences, samples[0] - samples[1])["ROUGE_L"] <= 0.05
    # One-sided in the observed direction, so in about a tenth of the trials.
    assert 3 <= small <= 20


@pytest.mark.launched
def test_the_score_command_reports_intervals_and_a_paired_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["Eagle", "Mill", "Plough", "Punter", "Phoenix", "Waterman"]
    texts = [
        f"The {name} is a cheap French pub near the {other}." for name, other in zip(names, names[::-1], strict=True)
    ]
    references, better, worse = (tmp_path / f"{name}.txt" for name in ("references", "better", "worse"))
    references.write_text("\n\n".join(texts) + "\n")
    better.write_text("\n".join([*texts[:5], "A pub."]) + "\n")
    worse.write_text("\n".join(text.replace("French pub", "place") for text in texts) + "\n")
    arguments = ["score", str(references), str(better), "--bootstrap", "100", "--against", str(worse)]
    assert main([*arguments, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    low, high = first["bootstrap"]["ROUGE_L"]
    assert low < first["ROUGE_L"] < high <= 1
    assert first["bootstrap"]["resamples"] == 100
    assert main(["score", str(references), str(worse), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert first["against"]["outputs"] == other["signature"]["outputs"]
    for metric in suite.METRICS:
        assert first["against"]["difference"][metric] == pytest.approx(first[metric] - other[metric], abs=2e-6)
        assert 1 / 101 - 1e-6 <= first["against"]["p"][metric] <= 1
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"ROUGE_L  {first['ROUGE_L']:8.4f}  [{low:.4f}, {high:.4f}]"
    assert lines[6].split()[0] == "BLEU"
    assert lines[6].endswith(f"p {first['against']['p']['BLEU']:.4f}")


def test_wrong_bootstrap_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, table, part = (tmp_path / name for name in ("a.txt", "a.csv", "b.csv"))
    text.write_text("a b c\nd e f\n")
    table.write_text("mr,ref\nx,a\ny,b\n")
    part.write_text("mr,ref\ny,b\n")
    for arguments, message in (
        ([text, text, "--against", text], "add --bootstrap 1000"),
        ([text, text, "--bootstrap", 1], "--bootstrap is 1: must be >= 40"),
        ([table, table, "--bootstrap", 100, "--against", part], "b.csv has no output for 1 of the 2 instances"),
    ):
        assert main(["score", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
