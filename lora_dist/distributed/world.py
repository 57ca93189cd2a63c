"""Processes and devices: the only module that touches accelerate, DeepSpeed and torch's process groups.

The launcher (`accelerate launch`, torchrun, SLURM) says how many processes there are; the accelerate config says which
strategy and precision. Here they are started, checked, and hidden behind a few verbs, so that no other module asks
under which strategy it runs.
"""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed import distributed_c10d as distributed
from torch.distributed.rendezvous import rendezvous

from lora_dist.config import Precision, UserError
from lora_dist.distributed.device import choose_device, compute_precision, keep_freed_memory
from lora_dist.distributed.launcher import launched_processes, processes_on_this_machine, restarts, uses_deepspeed
from lora_dist.distributed.network import interface_towards
from lora_dist.distributed.signals import StopRequest
from lora_dist.distributed.watchdog import HANG_TIMEOUT, Watchdog

T = TypeVar("T")

TIMEOUT_MARGIN = 300.0
"""Seconds that a collective waits beyond the watchdog, which says more and so shall be the first to end a rank."""

NO_TIMEOUT = 10 * 365 * 24 * 3600.0
"""Seconds that stand for waiting for ever."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    accelerator: Accelerator
    precision: Precision
    """Number format of the frozen weights while training."""
    watchdog: Watchdog
    """To be told of progress, as it ends a process that makes none."""
    hosts: distributed.ProcessGroup | None
    """All ranks over gloo, for words that no GPU shall wait for; None for one process."""

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size; rank 0 writes files and talks to the user."""
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
    def strategy(self) -> str:
        """`single`, `ddp`, `zero1`, `zero2` or `zero3`."""
        if uses_deepspeed():
            return f"zero{self.accelerator.state.deepspeed_plugin.zero_stage}"
        return "single" if self.size == 1 else "ddp"

    def describe(self) -> dict[str, Any]:
        """The world for config.json: processes, strategy, device, precision."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"processes": self.size, "strategy": self.strategy, "device": name, "precision": self.precision}


@contextmanager
def world(
    device: str = "auto", *, tracker: str = "none", folder: Path | None = None, hang_timeout: float = HANG_TIMEOUT
) -> Iterator[World]:
    """Join the processes that the launcher started, and leave them in order at the end.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a number only without a launcher.
        tracker: an experiment tracker of accelerate's, or `none`.
        folder: where the tracker writes.
        hang_timeout: seconds without progress after which a rank says where it is and ends; 0 is for ever.

    Raises:
        UserError: if the device, the precision or a package is not there, or the processes would not find each other.
    """
    launched = launched_processes()
    on_cpu = choose_device(device, launched)
    if on_cpu:
        keep_freed_memory()
    if on_cpu and uses_deepspeed():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it would take a GPU without asking
        _compile_nothing()
    if on_cpu and launched > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes_on_this_machine()))
    _require_tracker(tracker)
    patience = timedelta(seconds=hang_timeout + TIMEOUT_MARGIN if hang_timeout else NO_TIMEOUT)
    backend = "gloo" if on_cpu and (launched > 1 or uses_deepspeed()) else None
    if processes_on_this_machine() < launched:
        _listen_to_other_machines()
    if restarts() and launched > 1:
        _join_again(backend, patience)
    accelerator = Accelerator(
        cpu=on_cpu and not uses_deepspeed(),
        mixed_precision="no",  # we hold the weights in the compute precision ourselves; autocast would cast each step
        step_scheduler_with_optimizer=False,
        log_with=None if tracker == "none" else tracker,
        project_dir=None if folder is None else str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=patience)],
    )
    if accelerator.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but each sees {accelerator.num_processes}: they would train "
            "separately; start with accelerate launch --config_file accelerate_configs/ddp.yaml"
        )
    assert launched == 1 or accelerator.distributed_type != DistributedType.NO
    load_weights_whole()
    _hush_deepspeed()
    hosts = distributed.new_group(backend="gloo", timeout=patience) if launched > 1 else None
    name = f"rank {accelerator.process_index} of {launched}"
    try:
        with Watchdog(name, hang_timeout) as watchdog:
            yield World(accelerator, compute_precision(accelerator.device), watchdog, hosts)
            accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()  # ends trackers and destroys the process group, before the interpreter does
        AcceleratorState._reset_state(reset_partial_state=True)  # another world may follow, on another device


def _listen_to_other_machines() -> None:
    """Gloo would listen at the address of this machine's own name, which is often a loopback one."""
    interface = interface_towards(os.environ["MASTER_ADDR"])
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _join_again(backend: str | None, patience: timedelta) -> None:
    """Make the process group before accelerate does, for processes that torchrun has started anew.

    They find the store of those before them, with addresses in it where nobody listens any more, so they need names of
    their own there.
    """
    store, rank, size = next(rendezvous("env://", timeout=patience))
    store = distributed.PrefixStore(f"restart-{restarts()}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)


def _require_tracker(tracker: str) -> None:
    """Refuse what accelerate would pass over in silence."""
    if tracker != "none" and find_spec(tracker) is None:
        raise UserError(
            f"--train.tracker {tracker} needs a package that is missing: pip install 'lora-dist[{tracker}]'"
        )


def _compile_nothing() -> None:
    """Keep DeepSpeed from compiling, at the first start on a machine, an operator that only inference on a CPU uses.

    A process killed meanwhile would leave a lock for whose end all later ones wait, for ever and without a word.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _hush_deepspeed() -> None:
    """DeepSpeed calls names of torch's that are on their way out, and each call warns."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def load_weights_whole() -> None:
    """Keep transformers from dividing up weights while it loads them under ZeRO-3: one rank may load alone here."""
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def on_main(world: World, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone and return its result on every rank; a UserError is raised on every rank.

    The others wait, so it is also how one process reads or downloads what all will find in the cache.
    """
    result: list[Any] = [None, None]
    if world.is_main:
        try:
            result = [work(), None]
        except UserError as error:
            result = [None, str(error)]
    broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    value: T = result[0]
    return value


def first_on_node(world: World, work: Callable[[], T]) -> T:
    """Do `work` on every rank, on one rank of a node before its others: it may fill a cache that they read.

    Raises:
        UserError: on every rank, if `work` raised one on any.
    """
    result: T | None = None
    problem: str | None = None
    for turn in (True, False):
        if (int(world.accelerator.local_process_index) == 0) == turn:
            try:
                result = work()
            except UserError as error:
                problem = str(error)
        problems = [text for text in gather_objects(world, [problem]) if text is not None]
        if problems:
            raise UserError(problems[0])
    return result  # type: ignore[return-value]


def barrier(world: World) -> None:
    """Wait for all ranks."""
    world.accelerator.wait_for_everyone()


def barrier_while(world: World, work: Callable[[], None]) -> None:
    """Wait for all ranks, and do `work` five times a second until they have come.

    Raises:
        RuntimeError: soon after another rank was killed, also one on another machine, of which no launcher tells.
    """
    if world.hosts is not None:
        coming = distributed.barrier(world.hosts, async_op=True)
        while not coming.is_completed():
            work()
            time.sleep(0.2)
        coming.wait()
    work()


def gather_objects(world: World, items: list[T]) -> list[T]:
    """The lists of all ranks, joined in rank order, on every rank."""
    gathered: list[T] = gather_object(items)
    return gathered


def gather_by_index(world: World, items: Mapping[int, T], total: int) -> list[T]:
    """Items 0 to `total` - 1, which the ranks hold in any division, in order, on every rank.

    Gathered by index and not by position, so no padding or uneven share can shift a row.

    Raises:
        RuntimeError: if an index is missing, is there twice, or does not belong.
    """
    pairs = gather_objects(world, list(items.items()))
    found = dict(pairs)
    if len(found) != len(pairs) or found.keys() != set(range(total)):
        missing = sorted(set(range(total)) - found.keys())
        raise RuntimeError(
            f"gathered {len(pairs)} rows for {total} indices: {len(pairs) - len(found)} twice, "
            f"{len(missing)} missing {missing[:5]}, {len(found.keys() - set(range(total)))} unknown"
        )
    return [found[index] for index in range(total)]


class SharedCounter:
    """A number that the ranks count up together, without waiting for each other."""

    def __init__(self, world: World) -> None:
        """Start at 0; every rank has to call it."""
        self._value = 0
        self._store: distributed.Store | None = None
        if world.size > 1:
            name = on_main(world, lambda: uuid4().hex)
            self._store = distributed.PrefixStore(name, distributed._get_default_store())

    def add(self, amount: int) -> int:
        """Add `amount`; the number after that."""
        if self._store is not None:
            return int(self._store.add("value", amount))
        self._value += amount
        return self._value


def stop_asked(world: World, request: StopRequest) -> str | None:
    """The signal that asked any of the ranks to end, on all of them at once; every rank has to call it."""
    if world.hosts is None:
        return request.signal
    numbers = torch.tensor([signal.Signals[request.signal] if request.signal else 0])
    distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX, group=world.hosts)
    number = int(numbers[0])
    return signal.Signals(number).name if number else None


def sum_over_ranks(world: World, values: Tensor) -> Tensor:
    """Element-wise sum over ranks of `values` (n,), in fp64, on every rank."""
    total: Tensor = world.accelerator.reduce(values.double(), reduction="sum")
    return total
