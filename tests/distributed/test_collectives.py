"""The poll for signals: the same answer on all ranks in the same step, and no step waits for another rank."""

import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from lora_dist.distributed.collectives import StopPoll
from lora_dist.distributed.signals import StopRequest
from lora_dist.distributed.world import World


def polls(size: int) -> list[tuple[StopPoll, StopRequest]]:
    """The poll of each of some ranks, which are threads here, with its request."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    groups: list[Any] = [None] * size

    def connect(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=20))

    together([lambda rank=rank: connect(rank) for rank in range(size)])  # type: ignore[misc]
    requests = [StopRequest() for _ in range(size)]
    worlds = [cast(World, SimpleNamespace(control_group=group)) for group in groups]
    return [(StopPoll(world, request), request) for world, request in zip(worlds, requests, strict=True)]


def together(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture(autouse=True)
def reduce_by_the_group_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of threads are not registered in `torch.distributed`, as they all belong to this process."""

    def all_reduce(tensor: torch.Tensor, op: Any, group: Any, async_op: bool) -> dist.Work:
        assert async_op
        options = dist.AllreduceOptions()
        options.reduceOp = op
        return cast(dist.Work, group.allreduce([tensor], options))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)


@pytest.mark.parametrize("asked", range(3))
def test_a_signal_on_any_rank_is_seen_by_all_ranks_after_the_same_step(asked: int) -> None:
    size, steps, when = 3, 8, 4
    ranks = polls(size)
    answers: list[list[str | None]] = [[] for _ in ranks]

    def steps_of(rank: int) -> None:
        poll, request = ranks[rank]
        for step in range(steps):
            if rank == asked and step == when:
                request.note(signal.SIGTERM, None)
            answers[rank].append(poll())

    together([lambda rank=rank: steps_of(rank) for rank in range(size)])  # type: ignore[misc]
    assert answers == [[None] * (when + 1) + ["SIGTERM"] * (steps - when - 1)] * size


def test_a_step_does_not_wait_for_a_rank_that_has_not_asked_yet() -> None:
    (first, request), (second, _) = polls(2)
    request.note(signal.SIGUSR1, None)
    assert first() is None  # the other rank is still in this step
    late: list[str | None] = []
    waiting = threading.Thread(target=lambda: late.append(first()))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()  # one step ahead, not two
    assert second() is None
    waiting.join(20)
    assert late == ["SIGUSR1"]
    assert second() == "SIGUSR1"


def test_the_last_step_waits_for_its_own_answer() -> None:
    ranks = polls(2)
    found: list[list[str | None]] = [[], []]

    def last_steps(rank: int) -> None:
        poll, request = ranks[rank]
        found[rank].append(poll())
        if rank == 1:
            request.note(signal.SIGHUP, None)
        found[rank].append(poll(wait=True))

    together([lambda rank=rank: last_steps(rank) for rank in range(2)])  # type: ignore[misc]
    assert found == [[None, "SIGHUP"]] * 2


def test_one_process_knows_of_its_signal_at_once() -> None:
    request = StopRequest()
    poll = StopPoll(cast(World, SimpleNamespace(control_group=None)), request)
    assert poll() is None
    request.note(signal.SIGTERM, None)
    request.note(signal.SIGUSR1, None)
    assert poll() == poll(wait=True) == "SIGTERM"
