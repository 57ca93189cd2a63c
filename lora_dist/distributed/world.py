"""Connect the processes of a run, check that they found each other, and shut them down in order.

The launcher (`accelerate launch`, torchrun, SLURM) sets the number of processes, the accelerate config the strategy and
the precision. Communication between the ranks is in `collectives.py`.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from lora_dist.config import Precision
from lora_dist.distributed.compat import compile_nothing, load_weights_whole, reset_accelerate
from lora_dist.distributed.device import choose_device, compute_precision, describe_device
from lora_dist.distributed.environment import check_environment
from lora_dist.distributed.launch_round import LaunchRound, agree_on_round, single_process_round
from lora_dist.distributed.launcher import launched_processes, local_processes, uses_deepspeed
from lora_dist.distributed.network import interface_towards
from lora_dist.distributed.packages import is_installed
from lora_dist.distributed.watchdog import HANG_TIMEOUT, Watchdog
from lora_dist.errors import UserError

TIMEOUT_MARGIN = 300.0
"""Seconds by which a collective's timeout exceeds the watchdog's, whose more useful report should come first."""

NO_TIMEOUT = 10 * 365 * 24 * 3600.0
"""Seconds that mean no timeout."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    accelerator: Accelerator
    precision: Precision
    """Precision of the frozen weights during training."""
    watchdog: Watchdog
    """Ends this process if no progress is reported to it for too long."""
    launch: LaunchRound
    """This start by the launcher."""
    store: Store | None
    """Key-value store of all ranks; None for one process."""
    control_group: dist.ProcessGroup | None
    """All ranks over gloo, for messages that do not go through the GPU; None for one process."""
    is_solo: bool = False
    """Whether this is a world of this process alone, see `solo`."""

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size; rank 0 writes files and prints."""
        return 0 if self.is_solo else int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """Number of processes of the run."""
        return 1 if self.is_solo else int(self.accelerator.num_processes)

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars: one of them on a terminal, as several would overwrite it."""
        return int(self.accelerator.process_index) == 0 and sys.stderr.isatty()

    def solo(self) -> "World":
        """Return a world of this process alone, on its device, for work that needs no other rank.

        Nothing that is done in it waits for another rank.
        """
        return replace(self, store=None, control_group=None, is_solo=True)

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def zero_stage(self) -> int:
        """What DeepSpeed partitions over the ranks, see `launcher.Strategy`; 0 without DeepSpeed."""
        return int(self.accelerator.state.deepspeed_plugin.zero_stage) if uses_deepspeed() else 0

    @property
    def offload(self) -> bool:
        """Whether DeepSpeed keeps the optimizer state in the host's memory."""
        return uses_deepspeed() and self.accelerator.state.deepspeed_plugin.offload_optimizer_device != "none"

    @property
    def strategy(self) -> str:
        """`single`, `ddp`, `zero1`, `zero2` or `zero3`."""
        if uses_deepspeed():
            return f"zero{self.zero_stage}"
        return "single" if self.size == 1 else "ddp"

    def describe(self) -> dict[str, Any]:
        """Return processes, strategy, device and precision, for config.json."""
        return {
            "processes": self.size,
            "strategy": self.strategy,
            "device": describe_device(self.device),
            "precision": self.precision,
        }


@contextmanager
def world(
    device: str = "auto", *, tracker: str = "none", folder: Path | None = None, hang_timeout: float = HANG_TIMEOUT
) -> Iterator[World]:
    """Connect the processes that the launcher started, and shut down in order after the block.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a number only without a launcher.
        tracker: one of accelerate's experiment trackers, or `none`.
        folder: output folder of the tracker.
        hang_timeout: seconds without progress after which a rank reports where it is and ends; 0 turns this off.

    Raises:
        UserError: if the device, the precision or a package is unavailable, or the processes are not connected.
    """
    _require_tracker(tracker)
    check_environment()
    launched = launched_processes()
    on_cpu = choose_device(device, launched)
    if on_cpu:
        _use_cpu_cores(launched)
    else:  # in every command, as cuBLAS chooses its kernels by the size of its workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    timeout = timedelta(seconds=hang_timeout + TIMEOUT_MARGIN if hang_timeout else NO_TIMEOUT)
    with ExitStack() as stack:
        stack.callback(_leave)
        store, launch = _join(on_cpu, timeout) if launched > 1 else (None, single_process_round())
        accelerator = _make_accelerator(on_cpu, launched, tracker, folder, timeout)
        stack.callback(accelerator.end_training)  # closes trackers
        control_group = dist.new_group(backend="gloo", timeout=timeout) if launched > 1 else None
        watchdog = stack.enter_context(Watchdog(f"rank {accelerator.process_index} of {launched}", hang_timeout))
        yield World(accelerator, compute_precision(accelerator.device), watchdog, launch, store, control_group)
        accelerator.wait_for_everyone()


def _leave() -> None:
    """Destroy the process group before the interpreter exits, and let another world follow in this process."""
    if dist.is_initialized():
        dist.destroy_process_group()
    reset_accelerate()


def _make_accelerator(
    on_cpu: bool, launched: int, tracker: str, folder: Path | None, timeout: timedelta
) -> Accelerator:
    """Make the accelerator, which joins the process group if there is one.

    Raises:
        UserError: if it does not find all processes, or its configuration cannot work.
    """
    backend = "gloo" if on_cpu and (launched > 1 or uses_deepspeed()) else None  # accelerate would prefer MPI
    try:
        accelerator = Accelerator(
            cpu=on_cpu and not uses_deepspeed(),
            mixed_precision="no",  # the weights have the compute precision already; autocast would cast in each step
            step_scheduler_with_optimizer=False,
            log_with=None if tracker == "none" else tracker,
            project_dir=None if folder is None else str(folder),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=timeout)],
        )
    except (ValueError, NotImplementedError, ImportError, AssertionError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"accelerate refuses its config or environment ({reason}): use ddp.yaml") from error
    if accelerator.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but each sees {accelerator.num_processes}: they would train "
            "separately; start with accelerate launch --config_file accelerate_configs/ddp.yaml"
        )
    assert launched == 1 or accelerator.distributed_type != DistributedType.NO
    load_weights_whole()
    # DeepSpeed calls deprecated functions of torch, which warn each time.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # Its replacement would broadcast the buffers still.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return accelerator


def _use_cpu_cores(launched: int) -> None:
    """Limit the threads of each process to its part of the cores, and keep DeepSpeed from using a GPU or compiling."""
    if uses_deepspeed():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DeepSpeed would use a GPU whenever there is one
        compile_nothing()
    if launched > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_processes()))


def _join(on_cpu: bool, timeout: timedelta) -> tuple[Store, LaunchRound]:
    """Create the process group before accelerate does, with keys of its own in the launcher's store."""
    if local_processes() < launched_processes():
        # Gloo would listen at the address of this machine's host name, which is often a loopback address.
        interface = interface_towards(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        if not 0 <= int(os.environ.get("RANK") or 0) < launched_processes():  # the store would wait for it
            raise ValueError(f"RANK is {os.environ['RANK']}, WORLD_SIZE is {launched_processes()}")
        store, rank, size = next(rendezvous("env://", timeout=timeout))
    except ValueError as error:
        raise UserError(f"the launcher's variables are not complete ({error}): start with accelerate launch") from None
    launch = agree_on_round(store, rank, size, timeout)
    store = PrefixStore(launch.name, store)
    backend = "gloo" if on_cpu else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return store, launch


def _require_tracker(tracker: str) -> None:
    """Refuse a tracker whose package is missing, which accelerate would skip silently."""
    if tracker != "none" and not is_installed(tracker):
        raise UserError(f"--train.tracker is {tracker}: its package is missing, pip install 'lora-dist[{tracker}]'")
