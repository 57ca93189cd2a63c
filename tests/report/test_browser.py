"""The data of the page's browser."""

from pathlib import Path

from made_runs import MRS, made_run

from lora_dist.report.browser import browser_data
from lora_dist.report.results import load_results


def test_an_mr_in_another_format_is_one_slot_with_its_whole_text(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine", mrs=("anything at all", *MRS[1:]))
    (result,) = load_results([run])
    data = browser_data([result])
    assert data["mrs"][0]["slots"] == [("mr", "anything at all")]
    assert data["runs"][0]["outputs"][0]["errors"] is None
