"""The command line: run the command, and turn its exceptions into one sentence and an exit code."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

from lora_dist.cli import commands
from lora_dist.distributed.launcher import LOG_PREFIX, forget_leftovers
from lora_dist.distributed.logs import set_up_logging
from lora_dist.errors import INTERRUPTED, USER_ERROR, Interrupted, UserError

OLD_RANK = re.compile(r"--local[-_]rank=\d+")
"""What torch.distributed.launch adds to the arguments, besides setting LOCAL_RANK."""

OUT_OF_MEMORY = (
    "MemoryError",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)
"""In the names and messages of what torch, CUDA, its libraries and Python raise for want of memory."""

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    function.__name__: function
    for function in (
        commands.run,
        commands.train,
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
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else USER_ERROR
    forget_leftovers()
    set_up_logging()
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"there is no command {arguments[0]}: choose one of {', '.join(COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        print(f"{LOG_PREFIX}stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        code = _report(error)
        if code is None:
            raise
        return code


def _report(error: Exception) -> int | None:
    """Print an expected failure as one sentence and return its exit code; None is for one that needs a traceback."""
    if isinstance(error, UserError | FloatingPointError | Interrupted):
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once per machine: its other ranks would print the same
            print(f"{LOG_PREFIX}{error}", file=sys.stderr)
        return USER_ERROR if isinstance(error, UserError) else INTERRUPTED if isinstance(error, Interrupted) else 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(
            f"{LOG_PREFIX}the disk is full; nothing that was complete is lost: make room, then give the same command "
            "again, a training with --resume",
            file=sys.stderr,
        )
        return 1
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        print(f"{LOG_PREFIX}{error.filename}: {error.strerror}: ask its owner for the right", file=sys.stderr)
        return USER_ERROR
    if not any(sign in f"{type(error).__name__}: {error}" for sign in OUT_OF_MEMORY):
        return None
    first_line = next(iter(str(error).splitlines()), "")
    print(
        f"{LOG_PREFIX}out of memory; complete checkpoints are kept. Try more --train.accumulation-steps, "
        "--train.gradient-checkpointing, --train.cuda-graphs off, a smaller --decode.batch-tokens, or "
        f"accelerate_configs/zero3.yaml (lora-dist plan shows what is needed): {first_line}",
        file=sys.stderr,
    )
    return 1


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
