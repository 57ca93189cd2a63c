"""Stored scores: damaged ones count as missing."""

from pathlib import Path

import pytest
from damage import REWRITES, Rewrite, rewriting
from made_runs import SCORES, made_run, read_object

from lora_dist.evaluation.decoded import read_decoded
from lora_dist.evaluation.stored import read_scores, read_sentence_scores
from lora_dist.metrics.suite import METRICS

DAMAGES: list[Rewrite] = [*REWRITES, lambda _: b"null"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_scores_count_as_missing(damage: Rewrite, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    instances, _ = read_decoded(run)
    scores, sentences = read_scores(run), read_sentence_scores(run, instances)
    assert scores is not None
    assert [scores[name] for name in METRICS] == list(SCORES)
    assert sentences is not None
    assert [row["METEOR"] for row in sentences] == [0.4] * 3
    for file in (run.scores, run.sentence_scores):
        file.write_bytes(damage(file.read_bytes()))
    assert (read_scores(run), read_sentence_scores(run, instances)) == (None, None)
    for file in (run.scores, run.sentence_scores):
        file.unlink()
    assert (read_scores(run), read_sentence_scores(run, instances)) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [{"BLEU": None}, {"NIST": "8"}, {"CIDEr": float("nan")}, {"signature": []}, {"bootstrap": {"BLEU": [0, 1]}}],
)
def test_scores_that_lack_a_value_count_as_missing(changes: dict[str, object], tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    rewriting("scores.json", **changes)(run.root)
    assert changes.keys() <= read_object(run.scores).keys()
    assert read_scores(run) is None


def test_scores_of_other_sentences_count_as_missing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    instances, _ = read_decoded(made_run(tmp_path / "other", texts=("Another.", "Two.", "Three.")))
    assert read_sentence_scores(run, instances) is None
