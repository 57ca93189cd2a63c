"""Graceful shutdown: a signal is recorded, and acted on after the current step or chunk.

SIGTERM and SIGUSR1 come from schedulers (SLURM: before the time limit, or at preemption), SIGINT from Ctrl-C, SIGHUP
from a terminal that closes. All ranks then finish their step or chunk, save, and exit with `errors.INTERRUPTED`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Whether this process has been asked to end."""

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the signal that came first."""

    def note(self, number: int, _: FrameType | None) -> None:
        """Record signal `number` and do nothing else; a second Ctrl-C then ends the process at once."""
        self.signal = self.signal or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
    """Record the `SIGNALS` that arrive during the block instead of ending the process; call it in the main thread.

    A signal that is ignored stays ignored: `nohup` ignores SIGHUP.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python lets only the main thread handle signals; whoever started this one ends it
        return
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
