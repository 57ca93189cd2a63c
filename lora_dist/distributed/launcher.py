"""Read the environment that a launcher (`accelerate launch`, torchrun, SLURM) sets, and build commands that start one.

This module touches no process group and does not import torch.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from lora_dist.config import Precision
from lora_dist.errors import UserError

MIXED_PRECISION: dict[Precision, str] = {"bf16": "bf16", "fp32": "no"}
"""Accelerate's names for the precision of the frozen weights, as an option and in ACCELERATE_MIXED_PRECISION."""

LOG_PREFIX = "lora-dist: "
"""First characters of each line in which a process reports its own failure."""


@dataclass(frozen=True)
class Strategy:
    """A way to train in several processes: DDP, or a stage of DeepSpeed ZeRO."""

    name: str
    """Its name on the command line, which is the stem of its file in `accelerate_configs/`."""
    zero_stage: int = 0
    """What ZeRO partitions over the ranks: 1 the optimizer state, 2 gradients too, 3 weights too; 0 is DDP."""
    offload: bool = False
    """Whether partitions of weights and optimizer state are kept in the host's memory."""

    def launch_options(self) -> list[str]:
        """Return the contents of its file in `accelerate_configs/` as options, as a wheel comes without the files."""
        if not self.zero_stage:
            return ["--multi_gpu"]
        offload = ["--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"] if self.offload else []
        return ["--use_deepspeed", "--zero_stage", str(self.zero_stage), *offload]


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("ddp"),
        Strategy("zero1", zero_stage=1),
        Strategy("zero2", zero_stage=2),
        Strategy("zero3", zero_stage=3),
        Strategy("zero3_offload", zero_stage=3, offload=True),
    )
}
"""Every strategy by name: `reproduce --strategy`, `plan` and `verify` derive from it."""


MPI_SIZES = (
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "FLUX_JOB_SIZE",
    "JSM_NAMESPACE_SIZE",
)
"""Where srun and the kinds of MPI tell a process how many copies of its command they started."""


def forget_leftovers() -> None:
    """Remove a launcher's variables from the environment of a process that connects to no other.

    A container, or another program in the same shell, may have left them.
    """
    for name in ("WORLD_SIZE", *MPI_SIZES):
        if os.environ.get(name) == "":
            del os.environ[name]
    launched = "MASTER_ADDR" in os.environ
    if not launched:
        os.environ.pop("TORCHELASTIC_RESTART_COUNT", None)
    elif os.environ.get("WORLD_SIZE", "1") != "1" or _asks_for_deepspeed():  # DeepSpeed needs LOCAL_RANK in any case
        return
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def launched_processes() -> int:
    """Return how many processes the launcher started; 1 without a launcher.

    Raises:
        UserError: if this process is one of several copies that are not connected.
    """
    launched = _positive("WORLD_SIZE")
    if launched > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {launched} and MASTER_ADDR is missing: unset WORLD_SIZE, or start with accelerate launch"
        )
    # MPI and srun start copies of a command; only torchrun's variables join them.
    for name in MPI_SIZES:
        copies = _positive(name)
        if copies > 1 and launched == 1:
            raise UserError(
                f"{copies} copies of this command were started ({name}={copies}) that do not know of each other: start "
                "one task per node, and in it accelerate launch (see launch/multi_node.slurm)"
            )
    return launched


def refuse_launcher(command: str) -> None:
    """Refuse to run a command that launches processes of its own as one of several processes.

    Raises:
        UserError: which says so.
    """
    if launched_processes() > 1:
        raise UserError(f"{command} launches its own processes: start it without a launcher")


def local_processes() -> int:
    """Return how many of the launcher's processes run on this machine."""
    return _positive("LOCAL_WORLD_SIZE" if os.environ.get("LOCAL_WORLD_SIZE") else "WORLD_SIZE")


def _positive(variable: str) -> int:
    """Read a count from the environment; 1 where the variable is missing or empty."""
    value = os.environ.get(variable) or "1"
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{variable} is {value}: unset it, or start with accelerate launch")
    return int(value)


def restarts() -> int:
    """Return how often torchrun has restarted these processes after a failure (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def uses_deepspeed() -> bool:
    """Return whether the launcher's config asks for DeepSpeed.

    Raises:
        UserError: if it does but DeepSpeed is missing, where accelerate would print a traceback.
    """
    asked = _asks_for_deepspeed()
    if asked and find_spec("deepspeed") is None:
        raise UserError(
            "the accelerate config asks for DeepSpeed, which is missing: pip install deepspeed, or use ddp.yaml"
        )
    return asked


def _asks_for_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def launch_command(processes: int, strategy: Strategy = STRATEGIES["ddp"], precision: Precision = "bf16") -> list[str]:
    """Return the first part of a command that starts a Python file or module in `processes` processes here."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    common = ["--num_machines", "1", "--num_processes", str(processes), "--mixed_precision", MIXED_PRECISION[precision]]
    if processes == 1 and not strategy.zero_stage:  # accelerate refuses --multi_gpu for one process
        return [*launcher, *common]
    return [*launcher, *strategy.launch_options(), *common, "--main_process_port", "0"]


def failure_reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why launched processes failed, in one line: their own report, the first error, or the exit code."""
    lines = done.stderr.splitlines()
    reported = [line.removeprefix(LOG_PREFIX) for line in lines if line.startswith(LOG_PREFIX)]
    errors = [line.strip() for line in lines if "Error: " in line]
    return (reported or errors or [f"exit code {done.returncode}"])[0]
