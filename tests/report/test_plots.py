"""The plots of the report."""

from pathlib import Path
from xml.etree import ElementTree

from made_runs import made_run

from lora_dist.report.write import write_report


def test_the_plots_are_well_formed_svg_next_to_the_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    write_report([run], run)
    for name in ("scores", "size", "slots", "loss", "schedule"):
        root = ElementTree.parse(run.plots / f"{name}.svg").getroot()
        assert "gpt2, improved" in "".join(root.itertext())
        assert f"](plots/{name}.svg)" in run.report_markdown.read_text()
