"""Communication between the ranks of a run, in a few functions that are the same under every strategy."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from lora_dist.distributed.signals import StopRequest
from lora_dist.distributed.world import World
from lora_dist.errors import UserError

T = TypeVar("T")


def on_main(world: World, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 only and return its result on every rank. Collective: call on all ranks.

    The other ranks wait, so one process can also download what all of them then find in the cache.

    Raises:
        UserError: on every rank, if `work` raised one.
    """
    result: list[Any] = [None, None]
    if world.is_main:
        try:
            result = [work(), None]
        except UserError as error:
            result = [None, str(error)]
    if not world.is_solo:
        broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    value: T = result[0]
    return value


@contextmanager
def context_on_main(world: World, context: AbstractContextManager[None]) -> Iterator[None]:
    """Hold `context` on rank 0 during the block. Collective: call on all ranks.

    Raises:
        UserError: on every rank, if entering it raised one.
    """
    with ExitStack() as stack:
        on_main(world, lambda: stack.enter_context(context))
        yield


def first_on_node(world: World, work: Callable[[], T]) -> T:
    """Do `work` on every rank, first on one rank per node and then on the others. Collective: call on all ranks.

    The first one may write a cache that the others read.

    Raises:
        UserError: on every rank, if `work` raised one on any rank.
    """
    result: T | None = None
    problem: str | None = None
    for turn in (True, False):
        if (world.is_solo or int(world.accelerator.local_process_index) == 0) == turn:
            try:
                result = work()
            except UserError as error:
                problem = str(error)
        problems = [text for text in gather_objects(world, [problem]) if text is not None]
        if problems:
            raise UserError(problems[0])
    return result  # type: ignore[return-value]


def barrier(world: World) -> None:
    """Wait for all ranks. Collective: call on all ranks."""
    if not world.is_solo:
        world.accelerator.wait_for_everyone()


def barrier_while(world: World, work: Callable[[], None]) -> None:
    """Wait for all ranks, and do `work` five times per second until they arrive. Collective: call on all ranks.

    Raises:
        RuntimeError: soon after another rank was killed, even on another machine, where no launcher reports it.
    """
    if world.control_group is not None:
        pending = dist.barrier(world.control_group, async_op=True)
        while not pending.is_completed():
            work()
            time.sleep(0.2)
        pending.wait()
    work()


def gather_objects(world: World, items: list[T]) -> list[T]:
    """Concatenate the lists of all ranks in rank order, on every rank. Collective: call on all ranks."""
    gathered: list[T] = items if world.is_solo else gather_object(items)
    return gathered


def gather_by_index(world: World, items: Mapping[int, T], total: int) -> list[T]:
    """Gather items 0 to `total` - 1 in order on every rank, in whatever way they are sharded.

    Collective: call on all ranks. As items are gathered by index instead of position, no padding or uneven shard can
    shift a row.

    Raises:
        RuntimeError: if an index is missing, occurs twice, or is not below `total`.
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
    """A counter that all ranks increase without waiting for each other."""

    def __init__(self, world: World) -> None:
        """Start at 0. Collective: call on all ranks."""
        self._value = 0
        self._store: Store | None = None
        if world.store is not None:
            name = on_main(world, lambda: uuid4().hex)
            self._store = PrefixStore(name, world.store)

    def add(self, amount: int) -> int:
        """Add `amount` and return the sum."""
        if self._store is not None:
            return int(self._store.add("value", amount))
        self._value += amount
        return self._value


class StopPoll:
    """Asks in each step whether any rank received a signal, without waiting for the other ranks.

    The answer of a step is that to the question of the step before, so it is the same on all ranks and long known.
    """

    def __init__(self, world: World, request: StopRequest) -> None:
        """Set up the poll for the signals that `request` records."""
        self._world, self._request = world, request
        self._pending: list[tuple[dist.Work, Tensor]] = []

    @property
    def asked(self) -> bool:
        """Whether this rank, which says nothing about the others, has received a signal."""
        return self._request.signal is not None

    def __call__(self, *, wait: bool = False) -> str | None:
        """Return on all ranks the signal that any rank received, None without one. Collective: call on all ranks.

        Args:
            wait: whether to wait for this question's answer too.
        """
        if self._world.control_group is None:
            return self._request.signal
        own = torch.tensor([signal.Signals[self._request.signal] if self._request.signal else 0])
        work = dist.all_reduce(own, op=dist.ReduceOp.MAX, group=self._world.control_group, async_op=True)
        questions = [*self._pending, (work, own)]
        self._pending = [] if wait else questions[-1:]
        number = 0
        for question, answer in questions[: len(questions) - len(self._pending)]:
            question.wait()
            number = max(number, int(answer[0]))
        return signal.Signals(number).name if number else None


def sum_over_ranks(world: World, values: Tensor) -> Tensor:
    """Sum `values` (n,) element-wise over ranks in fp64: (n,) on every rank. Collective: call on all ranks."""
    if world.is_solo:
        return values.double()
    total: Tensor = world.accelerator.reduce(values.double(), reduction="sum")
    return total
