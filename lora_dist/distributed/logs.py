"""Logging of the package to stderr: rank 0 logs everything, the other ranks only warnings."""

import logging
import os
import sys
import time
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Least time between two lines of progress."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Settings that every command has."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Show log lines of this level and above, on stderr."""


class _RankFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or os.environ.get("RANK", "0") == "0"


class _StderrHandler(logging.Handler):
    """Writes above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class ProgressLines:
    """Logs how far the process is, once in a while, where stderr is a file and a progress bar would fill it."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str, patience: int = 1) -> None:
        """Log `text` if stderr is no terminal and the last line is at least `patience` x `LINE_SECONDS` ago."""
        if time.monotonic() - self._last >= patience * LINE_SECONDS and not sys.stderr.isatty():
            self._last = time.monotonic()
            log.info(text)


def set_up_logging(level: str = "info") -> None:
    """Show the package's log lines of `level` and above; a second call changes the level."""
    logger = logging.getLogger("lora_dist")
    logger.setLevel(level.upper())
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.addFilter(_RankFilter())
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
