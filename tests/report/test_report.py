"""The paper's tables with runs beside them, and what must not be compared with them."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_runs import MRS, SCORES, TEXTS, made_run, seeded

from lora_dist.cli.commands import TrainCommand
from lora_dist.cli.parsing import parse_with_preset
from lora_dist.config import BASELINE, IMPROVED, Settings
from lora_dist.errors import UserError
from lora_dist.report.browser import browser_data
from lora_dist.report.compare import compare
from lora_dist.report.page import how_made
from lora_dist.report.published import PAPER, REPRODUCTIONS, TRAINABLE
from lora_dist.report.results import configurations, load_results
from lora_dist.report.tables import Table, adapter_table, cost_table, decoding_table, improvement_table, recipe_table, score_table
from lora_dist.report.write import write_report
from lora_dist.run_dir import RunDir


def all_scopes(settings: Settings) -> Settings:
    """As the paper decoded."""
    return replace(settings, decode=replace(settings.decode, ngram_scope="all"))


def column(table: Table, name: str) -> dict[str, str]:
    """A column of a table by its row's first cell."""
    return {row[0]: row[table.head.index(name)] for row in table.rows}


def test_the_papers_rows_stand_as_printed_and_the_run_below_them(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine", all_scopes(IMPROVED))
    lines = write_report([run], run).splitlines()
    assert "| Improved, paper | 2.36M | - | 0.6882 | 8.7540 | 0.4667 | 0.7103 | 2.4537 | - |" in lines
    assert "| Original (GPT-2 M), paper | 0.35M | - | 0.7040 | 8.8500 | 0.4680 | 0.7180 | 2.5300 | - |" in lines
    assert "| microsoft/LoRA#165, GPT-2 S | - | - | 0.6727 | 8.6009 | 0.4571 | 0.6814 | 2.3076 | - |" in lines
    assert "| gpt2, improved | 2,359,296 | 1 | 0.7123 | 8.9000 | 0.4600 | 0.7000 | 2.5000 | 25.00% |" in lines
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(PAPER) + len(REPRODUCTIONS) + 1
    assert not [line for line in lines if line.startswith("- ")]  # nothing to be careful about
    assert run.report_markdown.is_file()


@pytest.mark.parametrize(
    ("settings", "other", "said"),
    [
        (replace(IMPROVED, model=replace(IMPROVED.model, name="shared/mini-gpt2")), {}, "the base model is mini-gpt2"),
        (replace(IMPROVED, train=replace(IMPROVED.train, max_steps=20)), {}, "trained for fewer updates"),
        (IMPROVED, {"official": False}, "not the whole official test set"),
        (
            IMPROVED,
            {"bleu": "pymteval.py (-p), case-insensitive"},
            "BLEU and NIST are those of the",
        ),
    ],
)
def test_what_must_not_be_compared_is_marked(
    settings: Settings, other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = made_run(tmp_path / "mine", all_scopes(settings), **other)
    lines = write_report([run], run).splitlines()
    notes = [line for line in lines if line.startswith("- ")]
    assert len(notes) == 1
    assert notes[0].startswith(f"- [a] not to be compared with the paper's: {said}")
    assert [line for line in lines if ", improved [a] |" in line]


def test_another_scope_of_the_ban_is_marked_and_two_marks_are_two_letters(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "mine", official=False), made_run(tmp_path / "paper's", all_scopes(IMPROVED))]
    names = [row[0] for row in score_table(configurations(load_results(runs))).rows][-2:]
    assert names == ["gpt2, improved, ngram-scope generated [a,b]", "gpt2, improved, ngram-scope all"]


def test_seeds_are_one_line_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path / str(seed), seeded(all_scopes(IMPROVED), seed), scores=(bleu, 8.0, 0.4, 0.7, 2.0))
        for seed, bleu in ((1, 0.60), (2, 0.62), (3, 0.67))
    ]
    groups = configurations(load_results(runs))
    table = score_table(groups)
    row = table.rows[-1]
    assert row[:4] == ("gpt2, improved", "2,359,296", "3", "0.6300 ± 0.0361")  # sqrt((.03² + .01² + .04²) / 2)
    assert row[4] == "8.0000 ± 0.0000"
    assert table.notes == ("± is the standard deviation over the seeds",)
    assert column(recipe_table(groups), "gpt2, improved")["Seeds"] == "1, 2, 3"


def test_settings_that_differ_make_two_lines_that_name_them(tmp_path: Path) -> None:
    prefixes = replace(IMPROVED, train=replace(IMPROVED.train, refs_per_mr=8))
    other = replace(IMPROVED, train=replace(IMPROVED.train, accumulation_steps=2))  # changes nothing but rounding
    runs = [made_run(tmp_path / name, s) for name, s in (("a", IMPROVED), ("b", prefixes), ("c", seeded(other, 7)))]
    groups = configurations(load_results(runs))
    assert [(group.label, len(group.results)) for group in groups] == [
        ("gpt2, improved, refs-per-mr 1", 2),
        ("gpt2, improved, refs-per-mr 8", 1),
    ]


def test_relative_improvements_are_the_papers_own_when_given_its_scores(tmp_path: Path) -> None:
    improved = next(p for p in PAPER if p.name == "Improved")
    groups = configurations(load_results([made_run(tmp_path / "mine", all_scopes(IMPROVED), scores=improved.scores)]))
    rows = {row[1]: row[2:] for row in improvement_table(groups).rows}
    # Table 4 of the paper, whose last digits come from scores before they were rounded.
    printed = {
        "Baseline (E2E), paper": (4.38, 1.68, 4.10, 3.69, 9.84, 4.74),
        "Baseline (GPT-2 S), paper": (6.27, 4.14, 6.53, 7.82, 9.48, 6.85),
        "Original (GPT-2 M), paper": (-2.24, -1.08, -0.278, -1.07, -3.02, -1.54),
        "Goal, paper": (-0.993, -0.523, 0.569, -0.098, -0.660, -0.341),
    }
    for name, values in printed.items():
        assert [float(cell.rstrip("%")) for cell in rows[name]] == pytest.approx(values, abs=0.02)


def test_our_own_baseline_is_compared_with_too(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", BASELINE, scores=(0.5, 8, 0.4, 0.5, 2)), made_run(tmp_path / "b", IMPROVED)]
    rows = {row[:2]: row[2:] for row in improvement_table(configurations(load_results(runs))).rows}
    marked = "gpt2, improved [a]"
    assert rows[marked, "gpt2, baseline"] == ("+42.47%", "+11.25%", "+15.00%", "+40.00%", "+25.00%", "+26.74%")


def test_configurations_and_recipe_are_read_back_from_the_runs(tmp_path: Path) -> None:
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
    recipe = recipe_table(groups)
    assert (column(recipe, "Paper")["Learning rate"], column(recipe, label)["Learning rate"]) == ("0.0002", "0.002")
    assert (column(recipe, "Paper")["Epochs"], column(recipe, label)["Epochs"]) == ("5", "700 updates")
    assert column(recipe, "Paper")["Scope of that ban"] == "-"


def test_what_is_not_known_of_an_adapter_from_elsewhere_is_not_made_up(tmp_path: Path) -> None:
    run = made_run(tmp_path / "theirs")
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**config, "world": None}))
    groups = configurations(load_results([run]))
    recipe = column(recipe_table(groups), "gpt2, improved")
    assert recipe["Learning rate"] == recipe["Seeds"] == recipe["Epochs"] == "unknown"
    assert recipe["Length penalty"] == "0.9"
    assert column(adapter_table(groups), "gpt2, improved")["Initialisation"] == "unknown"
    assert column(adapter_table(groups), "gpt2, improved")["Rank"] == "16"
    assert cost_table(groups).rows == ()


def test_nothing_is_so_many_per_cent_better_than_a_score_of_0(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", BASELINE, scores=(0.0, 8, 0.4, 0.5, 2)), made_run(tmp_path / "b", IMPROVED)]
    rows = {row[:2]: row[2:] for row in improvement_table(configurations(load_results(runs))).rows}
    assert rows["gpt2, improved [a]", "gpt2, baseline"] == ("-",) * 6
    assert rows["gpt2, baseline [a]", "gpt2, improved"][0] == "-100.00%"


def test_a_meaning_representation_in_another_form_is_shown_whole(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine", mrs=("anything at all", *MRS[1:]))
    (result,) = load_results([run])
    data = browser_data([result])
    assert data["mrs"][0]["slots"] == [("mr", "anything at all")]
    assert data["runs"][0]["outputs"][0]["errors"] is None


def test_a_report_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        write_report([made_run(tmp_path / "mine")], RunDir(tmp_path / "file"))


def test_time_and_memory_come_from_the_logs(tmp_path: Path) -> None:
    (row,) = cost_table(configurations(load_results([made_run(tmp_path / "mine")]))).rows
    # 20 updates of 8 examples at 4 a second are 40 s; 3 sentences took 1.5 s.
    assert row == ("gpt2, improved", "2 x cpu, ddp, fp32", "0.7", "4.0", "1.25", "0.500")


def test_decodings_of_one_adapter_are_compared_with_each_other_and_counted_once(tmp_path: Path) -> None:
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


def test_equal_names_of_different_things_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b")]
    config = json.loads(runs[1].config.read_text())
    config["data"]["train"] = "other rows"
    runs[1].config.write_text(json.dumps(config))
    assert [group.label for group in configurations(load_results(runs))] == ["gpt2, improved (a)", "gpt2, improved (b)"]


def test_each_run_tells_the_command_that_makes_it_again(tmp_path: Path) -> None:
    settings = seeded(replace(IMPROVED, data=replace(IMPROVED.data, dir=Path("my data"))), 7)
    (result,) = load_results([made_run(tmp_path / "mine", settings)])
    command, facts = how_made(result)
    launcher, own = shlex.split(command.split(" -m lora_dist ")[0]), shlex.split(command.split(" -m lora_dist ")[1])
    assert launcher[:2] == ["accelerate", "launch"]
    assert launcher[2:] == [
        *("--config_file", "accelerate_configs/ddp.yaml", "--num_processes", "2", "--mixed_precision", "no"),
    ]
    assert own[0] == "run"
    again = parse_with_preset(TrainCommand, "run", None, own[1:])
    assert again.sections() == settings
    assert again.out == tmp_path / "mine"
    assert "torch" in facts


def test_the_plots_are_well_formed_and_beside_the_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    write_report([run], run)
    for name in ("scores", "size", "slots", "loss", "schedule"):
        root = ElementTree.parse(run.plots / f"{name}.svg").getroot()
        assert "gpt2, improved" in "".join(root.itertext())
        assert f"](plots/{name}.svg)" in run.report_markdown.read_text()


def test_the_papers_counts_are_those_of_the_presets() -> None:
    printed = {p.name: p.trainable for p in PAPER}
    for name, count in TRAINABLE.items():
        assert float(printed[name].rstrip("M")) == pytest.approx(count / 1e6, abs=0.05)


def test_the_page_is_self_contained_and_escapes_what_a_run_says(tmp_path: Path) -> None:
    evil = ("</script><script>alert(1)</script>", '<img src=x onerror="alert(2)">', "<!-- & \u2028 -->")
    runs = [made_run(tmp_path / "a<b>|c", texts=evil), made_run(tmp_path / "other")]
    write_report(runs, RunDir(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "a&lt;b&gt;|c" in page
    start = page.index('id="data">') + 10
    end = page.index("</script>", start)
    outputs = json.loads(page[start:end])["runs"][0]["outputs"]
    assert [output["text"] for output in outputs] == list(evil)
    rest = page[:start] + page[end:]
    for outside in ("https:", "src=", "@import"):
        assert outside not in rest
    assert set(re.findall(r'"http:[^"]*"', rest)) == {'"http://www.w3.org/2000/svg"', '"http://www.w3.org/1999/xlink"'}
    assert set(re.findall(r"url\(.", rest)) == {"url(#"}


@pytest.mark.parametrize("missing", ["outputs_text", "decode_signature"])
def test_a_run_that_was_not_decoded_is_refused(missing: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    getattr(run, missing).unlink()
    with pytest.raises(UserError, match=r"lora-dist decode"):
        write_report([run], run)
    assert not run.report_markdown.exists()


def test_the_difference_of_two_runs_names_settings_scores_and_sentences(tmp_path: Path) -> None:
    other = replace(IMPROVED, decode=replace(IMPROVED.decode, length_penalty=0.8))
    changed = (TEXTS[0], "Blue Spice is a coffee shop by the river in the city.", TEXTS[2])
    text = compare(made_run(tmp_path / "a"), made_run(tmp_path / "b", other, texts=changed))
    assert "| --decode.length-penalty | 0.9 | 0.8 |" in text
    assert "--train." not in text
    assert "## Sentences that differ: 1 of 3" in text
    assert f"| 1 | {MRS[1]} | {TEXTS[1]} | {changed[1]} |" in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if " | " in line}
    first, second, difference = map(float, rows["BLEU"][:3])
    assert difference == pytest.approx(second - first, abs=2e-4)


def test_a_version_that_one_run_lacks_is_a_difference(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b")]
    signature = json.loads(runs[1].decode_signature.read_text())
    signature["versions"]["deepspeed"] = "0.19"
    runs[1].decode_signature.write_text(json.dumps(signature))
    assert "| version of deepspeed | None | 0.19 |" in compare(*runs)


def test_runs_of_other_test_sets_have_no_difference(tmp_path: Path) -> None:
    few: Sequence[str] = MRS[:2]
    with pytest.raises(UserError, match="other references"):
        compare(made_run(tmp_path / "a"), made_run(tmp_path / "b", texts=TEXTS[:2], mrs=few))
