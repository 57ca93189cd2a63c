"""The ways in which a command can fail, and the exit code of each."""

USER_ERROR = 2
"""Exit code for a user error."""

HUNG = 70
"""Exit code of a process that made no progress: EX_SOFTWARE of sysexits.h."""

INTERRUPTED = 75
"""Exit code of a process that saved its work after a signal: EX_TEMPFAIL of sysexits.h, the same command resumes."""

OUT_OF_MEMORY = (
    "MemoryError",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)
"""In the names and messages of what torch, CUDA, its libraries and Python raise for want of memory."""


class UserError(ValueError):
    """A user error: the command line prints it as one sentence and exits with `USER_ERROR`."""


class Interrupted(Exception):
    """A signal asked the process to end, and its work so far has been saved."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` was raised for want of memory, of a GPU or of the machine."""
    return any(sign in f"{type(error).__name__}: {error}" for sign in OUT_OF_MEMORY)
