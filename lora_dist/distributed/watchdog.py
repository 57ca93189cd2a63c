"""Hang detection: end a process that makes no progress and report where it is stuck."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from lora_dist.distributed.launcher import LOG_PREFIX
from lora_dist.errors import HUNG

HANG_TIMEOUT = 1800.0
"""Seconds without progress after which a process ends by default: above the slowest download, chunk or batch."""

TICK = 1.0
"""Seconds between two checks."""

REPORT_SECONDS = 5.0
"""Seconds between a process' report and its end: a launcher that sees one end stops the others, which hang as well and
have something to report."""


class Watchdog:
    """A thread that checks whether the main thread has noted progress lately; a context manager."""

    def __init__(self, name: str, seconds: float) -> None:
        """Watch over the thread that calls this.

        Args:
            name: of the process, in the message.
            seconds: without progress after which it counts as hanging; 0 turns the watchdog off.
        """
        self._name, self._seconds = name, seconds
        self._place = "the start"
        self._idle = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, place: str) -> None:
        """Note that the process has reached `place`, such as `step 7 of 100`."""
        self._place, self._idle = place, 0.0

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        # Counted in ticks and not by the clock, so that a process that was stopped (Ctrl-Z) does not count as hanging.
        while not self._stopped.wait(TICK):
            self._idle += TICK
            if self._idle >= self._seconds:
                self._end()

    def _end(self) -> None:
        sys.stderr.write(
            f"{LOG_PREFIX}{self._name} has made no progress for {self._seconds:.0f} s and ends (--hang-timeout). "
            f"It was at {self._place}:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        time.sleep(REPORT_SECONDS)
        os._exit(HUNG)  # the main thread hangs, so it cannot be asked to leave
