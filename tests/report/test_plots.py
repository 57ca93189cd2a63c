"""The plots of the report, whatever the names of runs and the user's settings of matplotlib are."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from made_runs import MRS, TEXTS, made_run, seeded

from lora_dist.metrics.suite import METRICS
from lora_dist.presets import IMPROVED
from lora_dist.report import drawings
from lora_dist.report.configurations import Configuration, configurations
from lora_dist.report.plots import make_plots
from lora_dist.report.results import load_results
from lora_dist.report.write import write_report

NAMES = ["scores", "size", "slots", "loss", "schedule"]


def of_bases(folder: Path, *bases: str) -> list[Configuration]:
    """Configurations of base models in folders of these names, which also differ in a setting."""
    runs = []
    for number, base in enumerate(bases, start=1):
        model = replace(IMPROVED.model, name=f"models/{base}")
        train = replace(IMPROVED.train, refs_per_mr=number)
        runs.append(made_run(folder / str(number), replace(IMPROVED, model=model, train=train)))
    return configurations(load_results(runs))


def test_the_plots_are_well_formed_svg_next_to_the_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    write_report([run], run)
    for name in NAMES:
        root = ElementTree.parse(run.plots / f"{name}.svg").getroot()
        assert "gpt2, improved" in "".join(root.itertext())
        assert f"](plots/{name}.svg)" in run.report_markdown.read_text()


def test_names_are_shown_literally_in_every_legend(tmp_path: Path) -> None:
    bases = ("gpt2$x_$y", "_gpt2", r"\frac{", "a & <b>", "模型")
    plots, notes = make_plots(of_bases(tmp_path, *bases))
    assert notes == []
    assert [plot.name for plot in plots] == NAMES
    for plot in plots:
        text = "".join(ElementTree.fromstring(plot.svg).itertext())
        assert [base for base in bases if f"{base}, improved" not in text] == []


def test_the_users_settings_of_matplotlib_change_no_plot(tmp_path: Path) -> None:
    groups = of_bases(tmp_path, "gpt2")
    plots = make_plots(groups)
    with mpl.rc_context({"text.usetex": True, "font.size": 40, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert make_plots(groups) == plots
        assert mpl.rcParams["font.size"] == 40


@pytest.mark.launched
def test_a_notebooks_backend_and_a_matplotlibrc_change_no_plot(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\nno.such.key: 1\n")
    run = made_run(tmp_path / "run")
    plots, _ = make_plots(configurations(load_results([run])))
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, "-m", "lora_dist", "report", str(run.root)]
    done = subprocess.run(command, env=os.environ | backend, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "could not be drawn" not in done.stderr
    assert {plot.name: plot.svg for plot in plots} == {
        name: (run.plots / f"{name}.svg").read_text(encoding="utf-8") for name in NAMES
    }


def test_a_plot_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no font\nTraceback of the font")

    monkeypatch.setitem(drawings.DRAWINGS, "loss", fail)
    run = made_run(tmp_path / "run")
    write_report([run], run)
    note = "The plot loss could not be drawn: RuntimeError: no font"
    assert sorted(path.stem for path in run.plots.iterdir()) == sorted(set(NAMES) - {"loss"})
    assert note in run.report_markdown.read_text().splitlines()
    assert f"<p>{note}</p>" in run.report_html.read_text()
    assert "plots/loss.svg" not in run.report_markdown.read_text()


def test_one_meaning_representation_has_a_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", mrs=MRS[:1], texts=TEXTS[:1])
    write_report([run], run)
    assert len(list(run.plots.iterdir())) == len(NAMES)


def test_dev_scores_are_curves_over_the_epochs_where_a_run_has_them(tmp_path: Path) -> None:
    plain = made_run(tmp_path / "plain")
    scored = made_run(tmp_path / "scored", seeded(IMPROVED, 7), dev_bleus=(0.5, 0.6))
    write_report([plain], plain)
    assert not (plain.plots / "dev.svg").exists()
    write_report([plain, scored], scored)
    text = "".join(ElementTree.parse(scored.plots / "dev.svg").getroot().itertext())
    assert all(name in text for name in (*METRICS, "epoch", "gpt2, improved"))
    assert "](plots/dev.svg)" in scored.report_markdown.read_text()
    assert "## Dev scores after each epoch" in scored.report_markdown.read_text()
