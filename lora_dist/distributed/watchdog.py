"""Hang detection: report where a process is stuck if it makes no progress, and end it."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from lora_dist.distributed.launcher import LOG_PREFIX
from lora_dist.distributed.logs import ProgressLines
from lora_dist.errors import HUNG

HANG_TIMEOUT = 1800.0
"""Default seconds without progress after which a process ends: longer than the slowest download, chunk or batch."""

TICK = 1.0
"""Seconds between two checks."""

REPORT_SECONDS = 5.0
"""Seconds between a process' report and its end. A launcher stops the other processes as soon as one ends; these hang
as well and need the time for their own reports."""


class Watchdog:
    """A context manager with a thread that checks whether the main thread has reported progress recently."""

    def __init__(self, name: str, seconds: float) -> None:
        """Watch the process that calls this.

        Args:
            name: name of the process in the report.
            seconds: time without progress after which the process is ended; 0 turns the watchdog off.
        """
        self._name, self._seconds = name, seconds
        self._place = "the start"
        self.lines = ProgressLines()
        """For what says more than the place, which is logged only if nothing has been for twice as long."""
        self._idle = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, place: str) -> None:
        """Report that the process has reached `place`, such as `step 7 of 100`."""
        self._place, self._idle = place, 0.0
        self.lines(place, patience=2)

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        # Counted in ticks instead of by the clock, so that a process stopped by Ctrl-Z does not count as hanging.
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
        os._exit(HUNG)  # sys.exit would need the main thread, which hangs
