import json
from pathlib import Path

import numpy as np
import pytest

from lora_dist.cli.main import main
from lora_dist.metrics import bootstrap, mteval
from lora_dist.metrics import suite as metrics

N = 40


def made_up(rouge: np.ndarray) -> metrics.Measurements:
    """Measurements with the given ROUGE_L and everything else the same for all instances."""
    texts = ["a b c d e f"] * len(rouge)
    counts = mteval.statistics([[text] for text in texts], texts, "perl")
    return metrics.Measurements("perl", counts, np.ones((len(rouge), 23)), rouge, rouge * 10)


@pytest.fixture(scope="module")
def rouge() -> np.ndarray:
    return np.random.default_rng(1).random(N)


def test_a_resample_scores_like_a_file_of_the_drawn_instances() -> None:
    references = [["a b c d e f"], ["a b x y z w", "u v w"], ["k l m n o"]]
    outputs = ["a b c d x y", "a b x y", "k l m n o p"]
    counts = mteval.statistics(references, outputs, "perl")
    rouge = np.array([0.1, 0.5, 0.9])
    measured = metrics.Measurements("perl", counts, np.ones((3, 23)), rouge, rouge)
    samples = bootstrap.resampled_scores(measured, 50, seed=7)
    generator = np.random.default_rng(7)
    for sample in samples:
        rows = generator.integers(3, size=3)
        drawn = mteval.statistics([references[row] for row in rows], [outputs[row] for row in rows], "perl")
        assert sample[0] == pytest.approx(mteval.bleu(drawn, "perl"))
        assert sample[3] == pytest.approx(rouge[rows].mean())


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(rouge: np.ndarray) -> None:
    low, high = bootstrap.intervals(bootstrap.resampled_scores(made_up(rouge), 2000, seed=0))["ROUGE_L"]
    error = rouge.std() / np.sqrt(N)
    assert (low, high) == pytest.approx((rouge.mean() - 1.96 * error, rouge.mean() + 1.96 * error), abs=0.2 * error)


def test_the_same_seed_gives_the_same_resamples(rouge: np.ndarray) -> None:
    first, again, other = (bootstrap.resampled_scores(made_up(rouge), 50, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_two_systems_are_resampled_in_pairs(rouge: np.ndarray) -> None:
    # One is better by the same amount everywhere: then it is better by that amount in each resample.
    samples = [bootstrap.resampled_scores(made_up(scores), 200, seed=0) for scores in (rouge + 0.01, rouge)]
    differences = samples[0] - samples[1]
    assert differences[:, 3] == pytest.approx(0.01)
    p = bootstrap.p_values(np.array([0, 0, 0, 0.01, 0.1]), differences)
    assert p["ROUGE_L"] == pytest.approx(1 / 201)
    assert p["BLEU"] == 1  # never better


def test_p_by_hand() -> None:
    # Better on the whole set by 2; of 4 resamples it is better in 2, equal in 1 and worse in 1.
    samples = np.array([3.0, 1.0, 0.0, -1.0])[:, None] * np.ones(5)
    p = bootstrap.p_values(np.array([2.0, 2.0, 2.0, -2.0, 0.0]), samples)
    assert p == pytest.approx({"BLEU": 3 / 5, "NIST": 3 / 5, "METEOR": 3 / 5, "ROUGE_L": 4 / 5, "CIDEr": 1})


def test_under_no_difference_p_is_small_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    small = 0
    for trial in range(100):
        one, other = generator.random(N), generator.random(N)
        measured = [made_up(rouge) for rouge in (one, other)]
        samples = [bootstrap.resampled_scores(system, 99, seed=trial) for system in measured]
        differences = np.full(5, (one - other).mean())
        small += bootstrap.p_values(differences, samples[0] - samples[1])["ROUGE_L"] <= 0.05
    # One-sided in the direction that was seen, so in about a tenth of the trials.
    assert 3 <= small <= 20


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Eagle", "Mill", "Plough", "Punter", "Phoenix", "Waterman"]
    texts = [
        f"The {name} is a cheap French pub near the {other}." for name, other in zip(names, names[::-1], strict=True)
    ]
    references, good, bad = (tmp_path / f"{name}.txt" for name in ("references", "good", "bad"))
    references.write_text("\n\n".join(texts) + "\n")
    good.write_text("\n".join([*texts[:5], "A pub."]) + "\n")
    bad.write_text("\n".join(text.replace("French pub", "place") for text in texts) + "\n")
    arguments = ["score", str(references), str(good), "--bootstrap", "100", "--against", str(bad)]
    assert main([*arguments, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    low, high = first["bootstrap"]["ROUGE_L"]
    assert low < first["ROUGE_L"] < high <= 1
    assert first["bootstrap"]["resamples"] == 100
    assert main(["score", str(references), str(bad), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert first["against"]["outputs"] == other["signature"]["outputs"]
    for metric in metrics.METRICS:
        assert first["against"]["difference"][metric] == pytest.approx(first[metric] - other[metric], abs=2e-6)
        assert 1 / 101 - 1e-6 <= first["against"]["p"][metric] <= 1
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"ROUGE_L  {first['ROUGE_L']:8.4f}  [{low:.4f}, {high:.4f}]"
    assert lines[6].split()[0] == "BLEU"
    assert lines[6].endswith(f"p {first['against']['p']['BLEU']:.4f}")


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, table, turned = (tmp_path / name for name in ("a.txt", "a.csv", "b.csv"))
    text.write_text("a b c\nd e f\n")
    table.write_text("mr,ref\nx,a\ny,b\n")
    turned.write_text("mr,ref\ny,b\nx,a\n")
    for arguments, said in (
        ([text, text, "--against", text], "add --bootstrap 1000"),
        ([text, text, "--bootstrap", 1], "--bootstrap 1 is too few"),
        ([table, table, "--bootstrap", 100, "--against", turned], "b.csv has its outputs in another order"),
    ):
        assert main(["score", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err
