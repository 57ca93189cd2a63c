"""Runs grouped into configurations, and their labels."""

import json
from dataclasses import replace
from pathlib import Path

from made_runs import made_run, seeded

from lora_dist.config import IMPROVED
from lora_dist.report.configurations import configurations
from lora_dist.report.results import load_results


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
