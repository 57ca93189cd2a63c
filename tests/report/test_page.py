"""The report's page as a file, and the commands it shows."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

from made_runs import made_run, seeded

from lora_dist.cli.arguments import TrainCommand
from lora_dist.cli.parsing import parse_with_preset
from lora_dist.presets import IMPROVED
from lora_dist.report.page import provenance
from lora_dist.report.results import load_results
from lora_dist.report.write import write_report
from lora_dist.run_dir import RunDir


def test_the_command_of_a_run_reproduces_its_settings(tmp_path: Path) -> None:
    settings = seeded(replace(IMPROVED, data=replace(IMPROVED.data, dir=Path("my data"))), 7)
    (result,) = load_results([made_run(tmp_path / "mine", settings)])
    command, versions = provenance(result)
    launcher, arguments = (
        shlex.split(command.split(" -m lora_dist ")[0]),
        shlex.split(command.split(" -m lora_dist ")[1]),
    )
    assert launcher[:2] == ["accelerate", "launch"]
    assert launcher[2:] == [
        *("--config_file", "accelerate_configs/ddp.yaml", "--num_processes", "2", "--mixed_precision", "no"),
    ]
    assert arguments[0] == "run"
    parsed = parse_with_preset(TrainCommand, "run", None, arguments[1:])
    assert parsed.sections() == settings
    assert parsed.out == tmp_path / "mine"
    assert "torch" in versions


def test_the_page_is_self_contained_and_escapes_the_text_of_runs(tmp_path: Path) -> None:
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
    without_data = page[:start] + page[end:]
    for external in ("https:", "src=", "@import"):
        assert external not in without_data
    assert set(re.findall(r'"http:[^"]*"', without_data)) == {
        '"http://www.w3.org/2000/svg"',
        '"http://www.w3.org/1999/xlink"',
    }
    assert set(re.findall(r"url\(.", without_data)) == {"url(#"}
