"""The report's page in headless Chromium: it opens fast and without errors, and finds and sorts."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import MRS, TEXTS, made_run

from lora_dist.config import IMPROVED
from lora_dist.report.write import write_report
from lora_dist.run_dir import RunDir

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--enable-logging=stderr"),
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")

# Typed by a user; what the page then shows is left in the title, which --dump-dom prints with the rest.
STEPS = """<script>
const told = [];
const set = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
};
const first = () => document.querySelector("#list .output p")?.textContent;
const shown = () => document.getElementById("count").textContent.split(" ")[0];
%s
document.title = JSON.stringify(told);
</script>"""


def dump(page: Path, folder: Path, fragment: str = "") -> str:
    """The page's elements once its scripts have run; a message on its console is a failure."""
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


def told(page: Path, steps: str, folder: Path) -> str:
    """What `steps` push onto `told`, as JSON."""
    copy = page.with_name("steps.html")
    copy.write_text(page.read_text().replace("</body>", STEPS % steps + "</body>"))
    found = re.search("<title>(.*?)</title>", dump(copy, folder))
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs with 630 outputs each, of which the second says something else in every tenth."""
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


def test_it_opens_in_two_seconds_without_a_message_and_runs_nothing_a_model_wrote(page: Path, tmp_path: Path) -> None:
    html = dump(page, tmp_path)
    ready = re.search('data-ready="([0-9]+)"', html)
    assert ready is not None
    assert int(ready[1]) < 2000
    assert "630 of 630 meaning representations" in html
    assert "&lt;img src=x onerror" in html
    assert "<img" not in html


def test_searching_keeps_what_has_all_words_in_any_case(page: Path, tmp_path: Path) -> None:
    steps = 'set("search", "BLUE spice place 17"); told.push(shown(), first());'
    # Of 210 places twelve begin with 17 or end in it: 17, 117, 170 to 179 have "place 17" word by word.
    number = sum("17" in f"{n}" for n in range(210))
    assert told(page, steps, tmp_path).startswith(f'["{number}","Blue Spice is a coffee shop. It is near Place 17.')


def test_filters_and_order(page: Path, tmp_path: Path) -> None:
    steps = """
    set("filter", "differ"); told.push(shown());
    set("filter", "sentBLEU"); set("threshold", "0.1"); told.push(shown());
    set("filter", "all"); set("sort", "errors"); told.push(shown(), first());
    set("by", "2"); told.push(document.querySelector("#list .number").textContent);
    set("sort", "METEOR"); told.push(document.querySelector("#list .number").textContent);
    """
    found = told(page, steps, tmp_path)
    # 63 differ by "Indeed."; 63 of 630 scores rise from 0 by 1/630 up to 0.1.
    assert found.startswith('["63","63","630","Blue Spice is a coffee shop. It is near Place 0."')
    assert found.endswith('"1","1"]')  # the third run's first output leaves everything out; METEOR is equal everywhere


def test_a_view_is_kept_in_the_address(page: Path, tmp_path: Path) -> None:
    assert "63 of 630 meaning representations" in dump(page, tmp_path, "#filter=differ&q=")


def test_slots_are_marked_by_what_the_text_says(page: Path, tmp_path: Path) -> None:
    html = dump(page, tmp_path, "#q=riverside")
    first = html[html.index("<article") : html.index("</article>")]
    assert '<mark title="eatType">coffee shop</mark>' in first
    assert "✓ eatType" in first
    assert "✗ area: missing" in first
