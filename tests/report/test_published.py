"""The published scores and counts."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from made_runs import made_run

from lora_dist.cli.arguments import ReportCommand
from lora_dist.cli.parsing import parse
from lora_dist.presets import IMPROVED
from lora_dist.report.configurations import configurations, preset_name
from lora_dist.report.published import PAPER, SIZES, TRAINABLE, Choice, methods, published_rows
from lora_dist.report.results import load_results
from lora_dist.report.tables import Table, improvement_table, score_table


def table_3(folder: Path, model: str, choice: Choice = "all") -> Table:
    """Table 3 of one run with a base model of that name."""
    run = made_run(folder / "run", replace(IMPROVED, model=replace(IMPROVED.model, name=model)))
    return score_table(configurations(load_results([run])), choice)


def test_the_printed_counts_of_trainable_params_are_the_rounded_exact_ones() -> None:
    printed = {p.name: p.trainable for p in PAPER}
    for name, count in TRAINABLE.items():
        assert float(printed[name].rstrip("M")) == pytest.approx(count / 1e6, abs=0.05)


def test_the_packages_rows_are_those_of_the_shared_file() -> None:
    shared = Path(__file__).parents[3] / "shared" / "published-e2e.json"
    if not shared.is_file():
        pytest.skip("needs ../shared/published-e2e.json")
    own = resources.files("lora_dist.report").joinpath("published.json").read_text(encoding="utf-8")
    assert json.loads(own) == json.loads(shared.read_text(encoding="utf-8"))


def test_every_published_row_has_possible_scores_and_a_source() -> None:
    assert len(methods()) == 32
    for row in methods():
        assert row.model in SIZES
        assert row.source
        assert row.choice in ("best", "last", None)
        for score, limit in zip(row.scores, (1, 15, 1, 1, 10), strict=True):
            assert score is None or 0 < score < limit


def test_the_seed_papers_rows_in_the_file_are_those_of_its_table_3() -> None:
    in_file = {row.scores for row in methods() if row.source.startswith("Swift")}
    assert in_file == {p.scores for p in PAPER if p.name in ("Baseline (GPT-2 S)", "Improved")}


@pytest.mark.parametrize("model", ["gpt2-medium", "openai-community/gpt2-medium", "models/gpt2-medium"])
def test_table_3_has_the_published_rows_of_the_runs_model_size_by_epoch(model: str, tmp_path: Path) -> None:
    table = table_3(tmp_path, model)
    rows = table.rows[len(PAPER) : table.num_published]
    assert len(rows) == len([row for row in methods() if row.model == "gpt2-medium"]) == 20
    epochs = [row[table.head.index("Epoch")] for row in rows]
    assert epochs == sorted(epochs, key=["best", "last", "-"].index)
    names = ("LoRA (original)", "0.35M", "3", "best", "0.7040", "8.8500", "0.4680", "0.7180", "2.5300", "-")
    assert rows[0] == (*names, "Hu et al. 2021, Table 3")


def test_a_value_that_the_source_does_not_give_is_a_dash_with_a_note() -> None:
    rows, notes = published_rows(["gpt2-large"], "all")
    nola = next(row for row in rows if row[0] == "NOLA")
    assert nola == ("NOLA", "0.036M", "-", "-", "0.7010", "-", "0.4670", "0.7170", "-", "-", "UCDvision/NOLA, Table 2")
    assert notes == ["Published rows: a dash stands for what the source does not say"]


def test_rows_of_two_sizes_name_theirs_and_a_model_without_rows_gets_smalls_with_a_note() -> None:
    rows, _ = published_rows(["gpt2", "gpt2-medium"], "all")
    assert {"Fine-tuning, GPT-2 Small", "Fine-tuning, GPT-2 Medium"} <= {row[0] for row in rows}
    rows, notes = published_rows(["../shared/mini-gpt2", "runs/base/mini-gpt2"], "all")
    assert "Prefix-tuning" in {row[0] for row in rows}
    assert notes[1] == "No scores are published for mini-gpt2: the rows after the paper's are GPT-2 Small's"


def test_published_rows_can_be_the_papers_only_or_none(tmp_path: Path) -> None:
    assert table_3(tmp_path / "paper", "gpt2", "paper").num_published == len(PAPER)
    assert [row[0] for row in table_3(tmp_path / "none", "gpt2", "none").rows] == ["gpt2, improved [a]"]
    groups = configurations(load_results([made_run(tmp_path / "run")]))
    assert improvement_table(groups, "none").rows == ()
    assert parse(ReportCommand, "report", ["runs/a", "--published", "none"]).published == "none"


def test_a_variant_is_named_after_the_preset_that_it_is_nearest_to() -> None:
    dora = replace(IMPROVED, lora=replace(IMPROVED.lora, dora=True, rank=8))
    assert preset_name(dora) == "improved, rank 8, dora"
