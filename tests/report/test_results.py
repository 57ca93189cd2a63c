"""Runs grouped into configurations, and their labels."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import SCORES, made_run, seeded

from lora_dist.config import Settings
from lora_dist.presets import BASELINE, IMPROVED
from lora_dist.report.configurations import configurations
from lora_dist.report.results import load_results, unique_names
from lora_dist.report.tables import adapter_table, hyperparameter_table, score_table
from lora_dist.run_dir import RunDir


def test_configurations_are_labeled_by_the_settings_that_differ(tmp_path: Path) -> None:
    more_references = replace(IMPROVED, train=replace(IMPROVED.train, refs_per_mr=8))
    other = replace(IMPROVED, train=replace(IMPROVED.train, accumulation_steps=2))  # affects only rounding
    runs = [
        made_run(tmp_path / name, s) for name, s in (("a", IMPROVED), ("b", more_references), ("c", seeded(other, 7)))
    ]
    groups = configurations(load_results(runs))
    assert [(group.label, len(group.results)) for group in groups] == [
        ("gpt2, improved, refs-per-mr 1", 2),
        ("gpt2, improved, refs-per-mr 8", 1),
    ]


def test_equal_labels_of_different_configurations_get_the_folder_name(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b")]
    config = json.loads(runs[1].config.read_text())
    config["data"]["train"] = "other rows"
    runs[1].config.write_text(json.dumps(config))
    assert [group.label for group in configurations(load_results(runs))] == ["gpt2, improved (a)", "gpt2, improved (b)"]


def test_folders_are_named_by_the_parts_that_tell_them_apart(tmp_path: Path) -> None:
    paths = ["one/runs/run", "two/runs/run", "two/runs/other", "run"]
    folders = [tmp_path / path for path in paths]
    assert unique_names(folders) == ["one/runs/run", "two/runs/run", "other", f"{tmp_path.name}/run"]
    assert unique_names([tmp_path / "run", tmp_path / "." / "run"]) == ["run", "run"]


def test_runs_whose_folders_share_a_name_have_columns_of_their_own(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name / "run", BASELINE) for name in ("one", "two")]
    config = json.loads(runs[1].config.read_text())
    config["data"]["train"] = "other rows"
    runs[1].config.write_text(json.dumps(config))
    groups = configurations(load_results(runs))
    labels = ("gpt2, baseline (one/run)", "gpt2, baseline (two/run)")
    for table in (adapter_table(groups), hyperparameter_table(groups)):
        assert table.head[-2:] == labels
        assert {len(row) for row in table.rows} == {len(table.head)}
    assert tuple(row[0].removesuffix(" [a]") for row in score_table(groups).rows[-2:]) == labels


def trained_in(run: RunDir, *worlds: dict[str, object]) -> RunDir:
    """Change the worlds in which a run was trained, the last one at its end."""
    config = json.loads(run.config.read_text())
    *earlier, config["world"] = [config["world"] | world for world in worlds]
    run.config.write_text(json.dumps(config | {"earlier_worlds": earlier}))
    return run


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("precision", "fp32", "bf16"), ("strategy", "ddp", "zero2"), ("processes", 2, 4)],
)
def test_runs_in_different_worlds_are_rows_of_their_own(
    name: str, first: object, second: object, tmp_path: Path
) -> None:
    runs = [
        trained_in(made_run(tmp_path / "a"), {name: first}),
        trained_in(made_run(tmp_path / "b", seeded(IMPROVED, 7)), {name: first}),
        trained_in(made_run(tmp_path / "c"), {name: second}),
        trained_in(made_run(tmp_path / "d"), {name: first}, {name: second}),
    ]
    groups = configurations(load_results(runs))
    assert [(group.label, len(group.results)) for group in groups] == [
        (f"gpt2, improved, {name} {first}", 2),
        (f"gpt2, improved, {name} {second}", 1),
        (f"gpt2, improved, {name} {first} {second}", 1),
    ]


def test_a_seed_counts_once(tmp_path: Path) -> None:
    def run(name: str, settings: Settings, bleu: float) -> RunDir:
        return made_run(tmp_path / name, settings, scores=(bleu, *SCORES[1:]))

    runs = [run("a", IMPROVED, 0.6), run("b", seeded(IMPROVED, 7), 0.7), run("c", IMPROVED, 0.9)]
    groups = configurations(load_results(runs))
    assert [result.name for result in groups[0].results] == ["a", "b"]
    table = score_table(groups)
    assert table.rows[-1][2:5] == ("2", "last", "0.6500 ± 0.0707")
    assert f"c is not counted: seed {IMPROVED.train.seed} has another run" in table.notes
