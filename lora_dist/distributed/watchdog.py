"""Ends a process that hangs, after it has said where: no rank waits for ever for one that does not come."""

import os
import sys
import threading
import time
import traceback
from types import TracebackType

EXIT_CODE = 70
"""Exit code of a process that hung: EX_SOFTWARE of sysexits.h."""

HANG_TIMEOUT = 1800.0
"""Seconds without progress after which a process ends, if nothing else is said: above the slowest download, chunk or
batch."""

TICK = 1.0
"""Seconds between two looks."""

LAST_WORDS = 5.0
"""Seconds between a process' last words and its end, as a launcher that sees one end stops the others: they hang as
well, and have something to say."""


class Watchdog:
    """A thread that looks whether the main thread has noted a new place lately; a context manager."""

    def __init__(self, name: str, seconds: float) -> None:
        """Watch over the thread that calls this.

        Args:
            name: of the process, in the message.
            seconds: without a new place after which it counts as hanging; 0 is for ever.
        """
        self._name, self._seconds = name, seconds
        self._place = "the start"
        self._idle = 0.0
        self._over = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def note(self, place: str) -> None:
        """Tell that the process has come to `place`, such as `update 7 of 100`."""
        self._place, self._idle = place, 0.0

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()

    def _watch(self) -> None:
        # Counted in ticks and not by the clock, so that a process that was stopped (Ctrl-Z) does not count as hanging.
        while not self._over.wait(TICK):
            self._idle += TICK
            if self._idle >= self._seconds:
                self._end()

    def _end(self) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        sys.stderr.write(
            f"lora-dist: {self._name} has not moved for {self._seconds:.0f} s and ends (--hang-timeout). It was at "
            f"{self._place}:\n{stack}"
        )
        sys.stderr.flush()
        time.sleep(LAST_WORDS)
        os._exit(EXIT_CODE)  # the main thread hangs, so it cannot be asked to leave
