"""The end that a scheduler or a user asks for: a signal is noted, and heeded where nothing is half done.

SIGTERM and SIGUSR1 come from schedulers (SLURM: before the time limit, or to make room), SIGINT from Ctrl-C, SIGHUP
from a terminal that goes away. All ranks then finish the update or chunk they are at, save, and leave with `EXIT_CODE`.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75
"""Exit code of a process that saved its work because a signal asked it to end: EX_TEMPFAIL of sysexits.h, try again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked for the end, and what was done so far has been saved."""


class StopRequest:
    """Whether this process has been asked to end."""

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the signal that came first."""

    def note(self, number: int, _: FrameType | None) -> None:
        """The signal handler: it sets a flag and nothing else. A second Ctrl-C ends the process at once."""
        self.signal = self.signal or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def heed_signals() -> Iterator[StopRequest]:
    """Note the `SIGNALS` that come during the block, in place of ending at once; the main thread has to call it.

    A signal that is ignored stays so: `nohup` ignores SIGHUP.
    """
    request = StopRequest()
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
