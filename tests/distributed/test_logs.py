import logging

import pytest

from lora_dist.distributed.logs import set_up_logging


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
