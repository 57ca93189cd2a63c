"""The command line: run the command, and turn its exceptions into one sentence and an exit code."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

from lora_dist import __version__
from lora_dist.cli import commands
from lora_dist.cli.process import prepared_process
from lora_dist.distributed.launcher import LOG_PREFIX, forget_leftovers
from lora_dist.distributed.logs import set_up_logging
from lora_dist.errors import INTERRUPTED, USER_ERROR, Interrupted, UserError, is_out_of_memory

FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors of a file that this user may not read or write, or that cannot exist under its name."""

OLD_RANK = re.compile(r"--local[-_]rank=\d+")
"""What torch.distributed.launch adds to the arguments, besides setting LOCAL_RANK."""

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    function.__name__: function
    for function in (
        commands.run,
        commands.train,
        commands.sweep,
        commands.decode,
        commands.score,
        commands.report,
        commands.generate,
        commands.merge,
        commands.plan,
        commands.bench,
        commands.verify,
        commands.reproduce,
        commands.doctor,
        commands.demo,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Returns:
        0 on success; `errors.USER_ERROR` after a user error, which is printed as one sentence; `errors.INTERRUPTED`
        after a signal, when the same command resumes; 1 after any other failure.
    """
    arguments = [word for word in (sys.argv[1:] if argv is None else argv) if not OLD_RANK.fullmatch(word)]
    with prepared_process():
        try:
            code = _run(arguments)
            sys.stdout.flush()
            return code
        except (Exception, KeyboardInterrupt) as error:
            code, sentence = _explain(error)
            is_shared = isinstance(error, UserError | FloatingPointError | Interrupted)
        # What all ranks of a machine report is printed by one of them.
        if not is_shared or (os.environ.get("LOCAL_RANK") or "0") == "0":
            print(f"{LOG_PREFIX}{sentence}", file=sys.stderr)
        return code


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else USER_ERROR
    if arguments[0] == "--version":
        print(f"lora-dist {__version__}")
        return 0
    forget_leftovers()
    set_up_logging()
    if arguments[0] not in COMMANDS:
        raise UserError(f"there is no command {arguments[0]}: choose one of {', '.join(COMMANDS)}")
    return COMMANDS[arguments[0]](arguments[1:])


def _explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one sentence for an exception; raise it if it has none and needs a traceback."""
    if isinstance(error, UserError):
        return USER_ERROR, str(error)
    if isinstance(error, Interrupted):
        return INTERRUPTED, str(error)
    if isinstance(error, FloatingPointError):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1, (
            "the disk is full; nothing that was complete is lost: make room, then give the same command again, a "
            "training with --resume"
        )
    if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename is not None:
        remedy = "name another place, or ask its owner for the right"
        return USER_ERROR, f"{error.filename} cannot be used ({error.strerror}): {remedy}"
    if is_out_of_memory(error):
        first_line = next(iter(str(error).splitlines()), "")
        return 1, (
            "out of memory; complete checkpoints are kept. Try more --train.accumulation-steps, "
            "--train.gradient-checkpointing, --train.cuda-graphs off, a smaller --decode.batch-tokens, or "
            f"accelerate_configs/zero3.yaml (lora-dist plan shows what is needed): {first_line}"
        )
    if "does not have a deterministic implementation" in str(error):
        reason = str(error).partition(", but")[0]
        return 1, f"complete checkpoints are kept: add --resume and --train.no-deterministic, as {reason}"
    raise error


def _usage() -> str:
    lines = [f"  {name:<9} {(function.__doc__ or '').strip()}" for name, function in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lora-dist COMMAND ...          on one device",
            "       accelerate launch --config_file accelerate_configs/ddp.yaml -m lora_dist COMMAND ...",
            "",
            "LoRA fine-tuning of GPT-2 on the E2E NLG Challenge. Settings of a command: lora-dist COMMAND --help",
            "",
            *lines,
        ]
    )
