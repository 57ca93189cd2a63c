"""The tables of the report: their rows, footnotes and values."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import SCORES, made_run, seeded

from lora_dist.config import Settings
from lora_dist.presets import BASELINE, IMPROVED
from lora_dist.report import write
from lora_dist.report.configurations import configurations
from lora_dist.report.epochs import epoch_table
from lora_dist.report.published import PAPER
from lora_dist.report.results import load_results
from lora_dist.report.tables import (
    Table,
    adapter_table,
    cost_table,
    decoding_table,
    hyperparameter_table,
    improvement_table,
    score_table,
)
from lora_dist.report.write import write_report
from lora_dist.run_dir import RunDir


def all_scopes(settings: Settings) -> Settings:
    """Use the n-gram scope of the paper's decoder."""
    return replace(settings, decode=replace(settings.decode, ngram_scope="all"))


def column(table: Table, name: str) -> dict[str, str]:
    """Return a column of a table, keyed by the first cell of each row."""
    return {row[0]: row[table.head.index(name)] for row in table.rows}


def test_another_ngram_scope_has_a_footnote_and_two_caveats_have_two_letters(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "mine", official=False), made_run(tmp_path / "paper's", all_scopes(IMPROVED))]
    names = [row[0] for row in score_table(configurations(load_results(runs))).rows][-2:]
    assert names == ["gpt2, improved, ngram-scope generated [a,b]", "gpt2, improved, ngram-scope all"]


def test_seeds_are_one_row_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path / str(seed), seeded(all_scopes(IMPROVED), seed), scores=(bleu, 8.0, 0.4, 0.7, 2.0))
        for seed, bleu in ((1, 0.60), (2, 0.62), (3, 0.67))
    ]
    groups = configurations(load_results(runs))
    table = score_table(groups, "paper")
    row = table.rows[-1]
    # sqrt((.03² + .01² + .04²) / 2)
    assert row[:5] == ("gpt2, improved", "2,359,296", "3", "last", "0.6300 ± 0.0361")
    assert row[5] == "8.0000 ± 0.0000"
    assert table.notes == ("± is the standard deviation over the seeds",)
    assert column(hyperparameter_table(groups), "gpt2, improved")["Seeds"] == "1, 2, 3"


def test_relative_improvements_of_the_papers_scores_equal_its_table_4(tmp_path: Path) -> None:
    improved = next(p for p in PAPER if p.name == "Improved")
    groups = configurations(load_results([made_run(tmp_path / "mine", all_scopes(IMPROVED), scores=improved.scores)]))
    rows = {row[1]: row[2:] for row in improvement_table(groups).rows}
    # Table 4 of the paper, computed from unrounded scores, hence the tolerance.
    printed = {
        "Baseline (E2E), paper": (4.38, 1.68, 4.10, 3.69, 9.84, 4.74),
        "Baseline (GPT-2 S), paper": (6.27, 4.14, 6.53, 7.82, 9.48, 6.85),
        "Original (GPT-2 M), paper": (-2.24, -1.08, -0.278, -1.07, -3.02, -1.54),
        "Goal, paper": (-0.993, -0.523, 0.569, -0.098, -0.660, -0.341),
    }
    for name, values in printed.items():
        assert [float(cell.rstrip("%")) for cell in rows[name]] == pytest.approx(values, abs=0.02)


def test_configurations_of_the_same_base_model_are_compared_with_each_other(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", BASELINE, scores=(0.5, 8, 0.4, 0.5, 2)), made_run(tmp_path / "b", IMPROVED)]
    rows = {row[:2]: row[2:] for row in improvement_table(configurations(load_results(runs))).rows}
    assert rows["gpt2, improved [a]", "gpt2, baseline"] == (
        "+42.47%",
        "+11.25%",
        "+15.00%",
        "+40.00%",
        "+25.00%",
        "+26.74%",
    )


def test_runs_whose_dev_losses_are_of_different_examples_are_seeds_of_one_configuration(tmp_path: Path) -> None:
    few = replace(IMPROVED, data=replace(IMPROVED.data, limit_dev=9), train=replace(IMPROVED.train, seed=7))
    (group,) = configurations(load_results([made_run(tmp_path / "a", IMPROVED), made_run(tmp_path / "b", few)]))
    assert len(group.results) == 2


def test_tables_1_and_2_have_the_settings_of_the_run_folders(tmp_path: Path) -> None:
    settings = replace(
        IMPROVED, lora=replace(IMPROVED.lora, rank=8), train=replace(IMPROVED.train, learning_rate=2e-3, max_steps=700)
    )
    groups = configurations(load_results([made_run(tmp_path / "mine", settings)]))
    (label,) = (group.label for group in groups)
    assert label == "gpt2, improved, rank 8"
    adapters = adapter_table(groups)
    assert column(adapters, "Improved, paper")["Rank"] == "16"
    assert column(adapters, label)["Rank"] == "8"
    assert column(adapters, label)["Target modules"] == "c_attn, c_proj, c_fc"
    hyperparameters = hyperparameter_table(groups)
    assert (column(hyperparameters, "Paper")["Learning rate"], column(hyperparameters, label)["Learning rate"]) == (
        "0.0002",
        "0.002",
    )
    assert (column(hyperparameters, "Paper")["Epochs"], column(hyperparameters, label)["Epochs"]) == ("5", "700 steps")
    assert column(hyperparameters, "Paper")["No-repeat n-gram scope"] == "-"


def test_the_training_of_an_imported_adapter_is_unknown(tmp_path: Path) -> None:
    run = made_run(tmp_path / "theirs")
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**config, "world": None}))
    groups = configurations(load_results([run]))
    hyperparameters = column(hyperparameter_table(groups), "gpt2, improved")
    assert hyperparameters["Learning rate"] == hyperparameters["Seeds"] == hyperparameters["Epochs"] == "unknown"
    assert hyperparameters["Length penalty"] == "0.9"
    assert column(adapter_table(groups), "gpt2, improved")["Initialization"] == "unknown"
    assert column(adapter_table(groups), "gpt2, improved")["Rank"] == "16"
    assert score_table(groups).rows[-1][3] == "unknown"
    assert cost_table(groups).rows == ()


def test_a_row_says_which_epoch_it_is_also_for_a_run_made_before_there_was_a_choice(tmp_path: Path) -> None:
    best = replace(IMPROVED, train=replace(IMPROVED.train, score_dev="epoch", select="best"))
    runs = [made_run(tmp_path / "old"), made_run(tmp_path / "best", best, dev_bleus=(0.5, 0.6, 0.55))]
    config = json.loads(runs[0].config.read_text())
    del config["settings"]["train"]["score_dev"], config["settings"]["train"]["select"]
    runs[0].config.write_text(json.dumps(config))
    results = load_results(runs)
    assert [row[3] for row in score_table(configurations(results)).rows[-2:]] == ["last", "best of 3 by dev BLEU"]
    table = epoch_table(results)
    assert table is not None
    assert [(*row[:3], *row[-2:]) for row in table.rows] == [
        ("best", "1", "0.5000", "-", ""),
        ("best", "2", "0.6000", "-", "yes"),
        ("best", "3", "0.5500", "-", ""),
    ]
    assert epoch_table(results[:1]) is None


def test_there_is_no_improvement_relative_to_a_score_of_zero(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", BASELINE, scores=(0.0, 8, 0.4, 0.5, 2)), made_run(tmp_path / "b", IMPROVED)]
    rows = {row[:2]: row[2:] for row in improvement_table(configurations(load_results(runs))).rows}
    assert rows["gpt2, improved [a]", "gpt2, baseline"] == ("-",) * 6
    assert rows["gpt2, baseline [a]", "gpt2, improved"][0] == "-100.00%"


def test_time_and_memory_are_computed_from_the_logs(tmp_path: Path) -> None:
    (row,) = cost_table(configurations(load_results([made_run(tmp_path / "mine")]))).rows
    # 20 steps of 8 examples at 4 per second take 40 s; 3 sentences took 1.5 s.
    assert row == ("gpt2, improved", "2 x cpu, ddp, fp32", "0.7", "4.0", "1.25", "0.500")


def test_decodings_of_the_same_adapters_are_one_table_and_one_row_of_table_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "make_plots", lambda _: ([], []))  # they take longest

    def decoded(name: str, adapter: str, bleu: float, **changed: Any) -> RunDir:
        settings = replace(IMPROVED, decode=replace(IMPROVED.decode, **changed))
        return made_run(tmp_path / name, settings, adapter=adapter, scores=(bleu, *SCORES[1:]))

    runs = [
        decoded("a", "first", 0.60),
        decoded("b", "second", 0.70),
        decoded("a-all", "first", 0.62, ngram_scope="all"),
        decoded("b-all", "second", 0.71, ngram_scope="all"),
        decoded("a-short", "first", 0.5, length_penalty=0.8),
        decoded("b-short", "second", 0.5, length_penalty=0.8),
    ]
    table = decoding_table(load_results(runs))
    assert table is not None
    assert [row[:2] for row in table.rows] == [
        ("generated, 0.9", "0.6500"),
        ("all, 0.9", "0.6650 (+0.0150)"),
        ("generated, 0.8", "0.5000 (-0.1500)"),
    ]
    text = write_report(runs, RunDir(tmp_path))
    assert len([line for line in text.splitlines() if line.startswith("| gpt2, improved")]) == 1
    assert "Decoding settings" not in write_report(runs[:2], RunDir(tmp_path / "other"))
    assert decoding_table(load_results(runs[:2])) is None
