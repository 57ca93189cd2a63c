"""How a command can end other than well, and the exit code of each."""

USER_ERROR = 2
"""Exit code after a mistake of the user."""

HUNG = 70
"""Exit code of a process that made no progress: EX_SOFTWARE of sysexits.h."""

INTERRUPTED = 75
"""Exit code of a process that saved its work because a signal asked it to end: EX_TEMPFAIL of sysexits.h, try again."""


class UserError(ValueError):
    """A mistake of the user: the command line prints it as one sentence and exits with `USER_ERROR`."""


class Interrupted(Exception):
    """A signal asked for the end, and what was done so far has been saved."""
