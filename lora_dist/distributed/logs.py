"""Logging of the package to stderr: rank 0 logs everything, the other ranks only warnings."""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm


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
