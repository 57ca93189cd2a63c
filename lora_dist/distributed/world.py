"""Start the processes of a run, check that they found each other, and end them in order.

The launcher (`accelerate launch`, torchrun, SLURM) says how many processes there are; the accelerate config says which
strategy and precision. What the ranks then exchange is in `collectives.py`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
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
from lora_dist.distributed.launcher import launched_processes, local_processes, restarts, uses_deepspeed
from lora_dist.distributed.network import interface_towards
from lora_dist.distributed.watchdog import HANG_TIMEOUT, Watchdog
from lora_dist.errors import UserError

TIMEOUT_MARGIN = 300.0
"""Seconds that a collective waits longer than the watchdog, whose message says more and so should come first."""

NO_TIMEOUT = 10 * 365 * 24 * 3600.0
"""Seconds that stand for no timeout."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    accelerator: Accelerator
    precision: Precision
    """Number format of the frozen weights while training."""
    watchdog: Watchdog
    """To be notified of progress, as it ends a process that makes none."""
    store: Store | None
    """Key-value store of all ranks; None for one process."""
    control_group: dist.ProcessGroup | None
    """All ranks over gloo, for messages that no GPU should wait for; None for one process."""

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size; rank 0 writes files and prints."""
        return int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """Processes of the run."""
        return int(self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
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
    def strategy(self) -> str:
        """`single`, `ddp`, `zero1`, `zero2` or `zero3`."""
        if uses_deepspeed():
            return f"zero{self.zero_stage}"
        return "single" if self.size == 1 else "ddp"

    def describe(self) -> dict[str, Any]:
        """The world for config.json: processes, strategy, device, precision."""
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
    """Join the processes that the launcher started, and leave them in order at the end.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a number only without a launcher.
        tracker: an experiment tracker of accelerate's, or `none`.
        folder: where the tracker writes.
        hang_timeout: seconds without progress after which a rank reports where it is and ends; 0 turns that off.

    Raises:
        UserError: if the device, the precision or a package is missing, or the processes would not find each other.
    """
    _require_tracker(tracker)
    launched = launched_processes()
    on_cpu = choose_device(device, launched)
    if on_cpu:
        _use_cpu_cores(launched)
    timeout = timedelta(seconds=hang_timeout + TIMEOUT_MARGIN if hang_timeout else NO_TIMEOUT)
    store = _join("gloo" if on_cpu else "nccl", timeout) if launched > 1 else None
    backend = "gloo" if on_cpu and (launched > 1 or uses_deepspeed()) else None  # accelerate would prefer MPI
    accelerator = Accelerator(
        cpu=on_cpu and not uses_deepspeed(),
        mixed_precision="no",  # we hold the weights in the compute precision ourselves; autocast would cast each step
        step_scheduler_with_optimizer=False,
        log_with=None if tracker == "none" else tracker,
        project_dir=None if folder is None else str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=timeout)],
    )
    if accelerator.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but each sees {accelerator.num_processes}: they would train "
            "separately; start with accelerate launch --config_file accelerate_configs/ddp.yaml"
        )
    assert launched == 1 or accelerator.distributed_type != DistributedType.NO
    load_weights_whole()
    # DeepSpeed calls functions of torch that are deprecated, and each call warns.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    control_group = dist.new_group(backend="gloo", timeout=timeout) if launched > 1 else None
    name = f"rank {accelerator.process_index} of {launched}"
    try:
        with Watchdog(name, hang_timeout) as watchdog:
            yield World(accelerator, compute_precision(accelerator.device), watchdog, store, control_group)
            accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()  # ends trackers and destroys the process group, before the interpreter does
        reset_accelerate()


def _use_cpu_cores(launched: int) -> None:
    """Share the cores among the `launched` processes, and keep DeepSpeed from taking a GPU or compiling for a CPU."""
    if uses_deepspeed():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it would take a GPU without asking
        compile_nothing()
    if launched > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_processes()))


def _join(backend: str, timeout: timedelta) -> Store:
    """Make the process group before accelerate does, and return its store.

    Processes that torchrun has restarted find the store of those before them, with addresses in it where nobody listens
    any more, so each attempt has keys of its own.
    """
    if local_processes() < launched_processes():
        # Gloo would listen at the address of this machine's own name, which is often a loopback one.
        interface = interface_towards(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(f"restart-{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return store


def _require_tracker(tracker: str) -> None:
    """Refuse a missing tracker, which accelerate would skip silently."""
    if tracker != "none" and find_spec(tracker) is None:
        raise UserError(f"--train.tracker is {tracker}: its package is missing, pip install 'lora-dist[{tracker}]'")
