"""What a command finds around it: standard streams without a reader, and users without a home."""

import errno
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, TextIO

READER_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EIO})
"""Errors of a stream whose pipe, connection or terminal nobody reads any more."""


class _Stream:
    """A text stream that goes on without its reader, and replaces what its encoding lacks."""

    def __init__(self, stream: TextIO, ignored: Collection[int]) -> None:
        """Wrap a stream.

        Args:
            stream: the stream.
            ignored: error numbers of writes that do not fail.
        """
        self._stream, self._ignored = stream, ignored

    def write(self, text: str) -> int:
        """Write text; nothing is raised if nobody reads it."""
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            return self.write(text.encode(encoding, errors="replace").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; nothing is raised if nobody reads it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Discard what is written from now on, also by other libraries; raise the error unless it is ignored."""
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if error.errno not in self._ignored:
            raise error


@contextmanager
def prepared_process() -> Iterator[None]:
    """Run the block with standard streams that outlive their readers, and with a home.

    A reader of the answer who goes away, such as `head`, ends neither the command nor what it still has to write. The
    progress on stderr is worth no failure at all, not even on a full disk.
    """
    with ExitStack() as stack:
        stack.enter_context(_home())
        before = sys.stdout, sys.stderr
        stack.callback(_set_streams, *before)
        out, err = _open_stream(1, sys.stdout), _open_stream(2, sys.stderr)
        _set_streams(_Stream(out, READER_GONE), _Stream(err, errno.errorcode))
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _set_streams(out: Any, err: Any) -> None:
    sys.stdout, sys.stderr = out, err


def _open_stream(descriptor: int, stream: TextIO | None) -> TextIO:
    """Return the stream, or one that discards everything if it was closed before the process started."""
    if stream is not None:
        return stream
    try:
        os.fstat(descriptor)
    except OSError:  # or the next file that is opened would get its number, and the output of C libraries
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
    return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def _home() -> Iterator[None]:
    """Give a user without a home a temporary one, as libraries would write to a folder ~ in the working directory."""
    if os.path.isabs(os.path.expanduser("~")):
        yield
        return
    before = os.environ.get("HOME")
    with TemporaryDirectory(prefix="lora-dist-", ignore_cleanup_errors=True) as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            del os.environ["HOME"]
            if before is not None:
                os.environ["HOME"] = before
