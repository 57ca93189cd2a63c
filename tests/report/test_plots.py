"""The plots of the report."""

from pathlib import Path
from xml.etree import ElementTree

from made_runs import made_run

from lora_dist.metrics.suite import METRICS
from lora_dist.report.write import write_report


def test_the_plots_are_well_formed_svg_next_to_the_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    write_report([run], run)
    for name in ("scores", "size", "slots", "loss", "schedule"):
        root = ElementTree.parse(run.plots / f"{name}.svg").getroot()
        assert "gpt2, improved" in "".join(root.itertext())
        assert f"](plots/{name}.svg)" in run.report_markdown.read_text()


def test_dev_scores_are_curves_over_the_epochs_where_a_run_has_them(tmp_path: Path) -> None:
    plain, scored = made_run(tmp_path / "plain"), made_run(tmp_path / "scored", dev_bleus=(0.5, 0.6))
    write_report([plain], plain)
    assert not (plain.plots / "dev.svg").exists()
    write_report([plain, scored], scored)
    text = "".join(ElementTree.parse(scored.plots / "dev.svg").getroot().itertext())
    assert all(name in text for name in (*METRICS, "epoch", "gpt2, improved"))
    assert "](plots/dev.svg)" in scored.report_markdown.read_text()
    assert "## Dev scores after each epoch" in scored.report_markdown.read_text()
