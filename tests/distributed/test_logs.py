import logging
import time

import pytest

from lora_dist.distributed.logs import LINE_SECONDS, ProgressLines, set_up_logging
from lora_dist.distributed.watchdog import Watchdog


@pytest.fixture(autouse=True)
def default_level_afterwards() -> object:
    yield
    set_up_logging()


@pytest.mark.parametrize(
    ("rank", "level", "shown"),
    [
        ("0", "info", ["information", "a warning"]),
        ("1", "info", ["a warning"]),
        ("0", "debug", ["a detail", "information", "a warning"]),
        ("0", "error", []),
    ],
)
def test_rank_0_shows_what_the_level_lets_through_and_the_others_only_warnings(
    rank: str, level: str, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    set_up_logging(level)
    set_up_logging(level)  # shows nothing twice
    log = logging.getLogger("lora_dist.somewhere")
    log.debug("a detail")
    log.info("information")
    log.warning("a %s", "warning")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == shown
    assert not captured.out


def test_a_file_gets_a_line_of_progress_a_minute_and_the_bare_place_after_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    set_up_logging()
    watchdog = Watchdog("rank 0 of 1", 0)
    for seconds in range(1, 301):
        now[0] = 1000 + seconds
        watchdog.progress(f"step {seconds}")
        if seconds <= 150:  # the losses of later steps are never logged
            watchdog.lines(f"step {seconds}: loss 2")
    assert capsys.readouterr().err.splitlines() == ["step 60: loss 2", "step 120: loss 2", "step 240"]


def test_a_terminal_gets_no_lines_of_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ProgressLines()
    later = time.monotonic() + 2 * LINE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    lines("step 1")
    assert capsys.readouterr().err == ""
