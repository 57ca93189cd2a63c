"""What the launcher (`accelerate launch`, torchrun, SLURM) says in its environment, and how to start one.

No process group is touched here, and torch is not imported.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Literal

from lora_dist.config import Precision, UserError

MIXED_PRECISION: dict[Precision, str] = {"bf16": "bf16", "fp32": "no"}
"""What accelerate calls the precision of the frozen weights, on its command line and in ACCELERATE_MIXED_PRECISION."""

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "zero3_offload"]

OWN_WORDS = "lora-dist: "
"""How a line begins in which a process says itself why it ended."""

_STRATEGIES: dict[Strategy, list[str]] = {
    "ddp": ["--multi_gpu"],
    "zero1": ["--use_deepspeed", "--zero_stage", "1"],
    "zero2": ["--use_deepspeed", "--zero_stage", "2"],
    "zero3": ["--use_deepspeed", "--zero_stage", "3"],
    "zero3_offload": [
        *("--use_deepspeed", "--zero_stage", "3"),
        *("--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"),
    ],
}
"""What the files of `accelerate_configs/` say, as options; an installed package comes without these files."""


def launched_processes() -> int:
    """Processes that the launcher started; 1 without a launcher.

    Raises:
        UserError: if this is one of several copies that do not know of each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # MPI and srun start copies of a command; only torchrun's variables join them.
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        copies = int(os.environ.get(name) or 1)
        if copies > 1 and launched == 1:
            raise UserError(
                f"{copies} copies of this command were started ({name}={copies}) that do not know of each other: start "
                "one task a node, and in it accelerate launch (see launch/multi_node.slurm)"
            )
    return launched


def processes_on_this_machine() -> int:
    """How many of the launcher's processes share this machine's cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)


def restarts() -> int:
    """How often torchrun has started these processes anew after a failure (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def uses_deepspeed() -> bool:
    """Whether the launcher's config asks for DeepSpeed.

    Raises:
        UserError: if it does and DeepSpeed is not installed; accelerate would end with a traceback.
    """
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if asked and find_spec("deepspeed") is None:
        raise UserError(
            "the accelerate config asks for DeepSpeed, which is missing: pip install deepspeed, or use ddp.yaml"
        )
    return asked


def launch_command(processes: int, strategy: Strategy = "ddp", precision: Precision = "bf16") -> list[str]:
    """The beginning of a command line that starts a Python file or module in `processes` processes on this machine."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    common = ["--num_machines", "1", "--num_processes", str(processes), "--mixed_precision", MIXED_PRECISION[precision]]
    if processes == 1 and strategy == "ddp":  # accelerate refuses --multi_gpu for one process
        return [*launcher, *common]
    return [*launcher, *_STRATEGIES[strategy], *common, "--main_process_port", "0"]


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why launched processes failed, in one line: what they say themselves, or the first error, or the exit code."""
    lines = done.stderr.splitlines()
    told = [line.removeprefix(OWN_WORDS) for line in lines if line.startswith(OWN_WORDS)]
    errors = [line.strip() for line in lines if "Error: " in line]
    return (told or errors or [f"exit code {done.returncode}"])[0]
