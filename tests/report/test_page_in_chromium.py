"""The report's page in headless Chromium: load time, console messages, search, filters and sort order."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import MRS, TEXTS, made_run

from lora_dist.presets import IMPROVED
from lora_dist.report.write import write_report
from lora_dist.run_dir import RunDir

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--enable-logging=stderr"),
)
pytestmark = [
    pytest.mark.launched,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]

# User input. What the page then shows is written to the title, which --dump-dom prints.
STEPS = """<script>
const results = [];
const set = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
};
const first = () => document.querySelector("#list .output p")?.textContent;
const shown = () => document.getElementById("count").textContent.split(" ")[0];
%s
document.title = JSON.stringify(results);
</script>"""


def dump(page: Path, folder: Path, fragment: str = "") -> str:
    """Return the DOM after the scripts have run; fail on any console message."""
    assert CHROMIUM is not None
    result = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{page.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    messages = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not messages
    return result.stdout


def run_steps(page: Path, steps: str, folder: Path) -> str:
    """Run `steps` in the page and return what they push to `results`, as JSON."""
    copy = page.with_name("steps.html")
    copy.write_text(page.read_text().replace("</body>", STEPS % steps + "</body>"))
    found = re.search("<title>(.*?)</title>", dump(copy, folder))
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report on four runs of 630 outputs each; the second differs in every tenth output."""
    folder = tmp_path_factory.mktemp("page")
    mrs = [f"{mr}, near[Place {number}]" for number in range(210) for mr in MRS]
    texts = [f"{text} It is near Place {number}." for number in range(210) for text in TEXTS]
    other = [f"{text} Indeed." if number % 10 == 0 else text for number, text in enumerate(texts)]
    evil = ["<img src=x onerror=console.error(1)></script><script>console.error(2)</script>", *texts[1:]]
    runs = []
    for number, outputs in enumerate((texts, other, evil, texts)):
        settings = replace(IMPROVED, train=replace(IMPROVED.train, seed=number))
        runs.append(made_run(folder / f"run{number}", settings, mrs=mrs, texts=outputs))
    write_report(runs, RunDir(folder))
    return folder / "report.html"


def test_it_loads_in_two_seconds_without_console_message_and_executes_no_output(page: Path, tmp_path: Path) -> None:
    html = dump(page, tmp_path)
    ready = re.search('data-ready="([0-9]+)"', html)
    assert ready is not None
    assert int(ready[1]) < 2000
    assert "630 of 630 meaning representations" in html
    assert "&lt;img src=x onerror" in html
    assert "<img" not in html


def test_search_keeps_the_mrs_that_contain_all_terms_case_insensitively(page: Path, tmp_path: Path) -> None:
    steps = 'set("search", "BLUE spice place 17"); results.push(shown(), first());'
    # 17, 117 and 170 to 179 contain "17".
    number = sum("17" in f"{n}" for n in range(210))
    assert run_steps(page, steps, tmp_path).startswith(
        f'["{number}","Blue Spice is a coffee shop. It is near Place 17.'
    )


def test_filters_and_sort_orders_select_and_order_the_mrs(page: Path, tmp_path: Path) -> None:
    steps = """
    set("filter", "differ"); results.push(shown());
    set("filter", "sentBLEU"); set("threshold", "0.1"); results.push(shown());
    set("filter", "all"); set("sort", "errors"); results.push(shown(), first());
    set("by", "2"); results.push(document.querySelector("#list .number").textContent);
    set("sort", "METEOR"); results.push(document.querySelector("#list .number").textContent);
    """
    found = run_steps(page, steps, tmp_path)
    # 63 outputs differ by "Indeed."; 63 of 630 scores, which rise from 0 in steps of 1/630, are below 0.1.
    assert found.startswith('["63","63","630","Blue Spice is a coffee shop. It is near Place 0."')
    assert found.endswith('"1","1"]')  # the first output of the third run misses all slots; METEOR is equal for all


def test_the_url_fragment_restores_the_view(page: Path, tmp_path: Path) -> None:
    assert "63 of 630 meaning representations" in dump(page, tmp_path, "#filter=differ&q=")


def test_slot_values_are_highlighted_and_missing_slots_are_shown(page: Path, tmp_path: Path) -> None:
    html = dump(page, tmp_path, "#q=riverside")
    first = html[html.index("<article") : html.index("</article>")]
    assert '<mark title="eatType">coffee shop</mark>' in first
    assert "✓ eatType" in first
    assert "✗ area: missing" in first
