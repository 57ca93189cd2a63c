"""A name for this start of the processes that all ranks share, and no earlier start had.

torchrun keeps its store when it restarts processes, with the keys and addresses of the dead ones in it. Its restart
count is each agent's own, so with several agents the ranks of one start may see different counts.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psutil
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from lora_dist.distributed.launcher import restarts
from lora_dist.errors import UserError

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class LaunchRound:
    """One start of the processes by their launcher."""

    name: str
    """Unique, and the same on all ranks."""
    restarted: bool
    """Whether the launcher restarted any of the processes after a failure."""
    agents: tuple[str, ...]
    """The launcher's processes, one or more per machine; they live through restarts."""


def single_process_round() -> LaunchRound:
    """Describe the start of a process that has no others to agree with."""
    return LaunchRound(uuid4().hex, restarts() > 0, (_agent(),))


def agree_on_round(store: Store, rank: int, size: int, timeout: timedelta) -> LaunchRound:
    """Agree on a name for this start. Collective: call on all ranks.

    Every rank announces itself under a fresh id. Rank 0 offers a name for the ids that it sees, again whenever one
    changes: an id of an earlier start is replaced when that rank's new process announces itself. A rank accepts an
    offer that contains its id, and all begin once all have accepted.

    Args:
        store: the launcher's, which may have keys of earlier starts.
        rank: this process, 0 <= rank < size.
        size: number of processes.
        timeout: how long to wait for the others.

    Raises:
        UserError: if a rank does not announce itself in time.
    """
    store = PrefixStore("lora_dist-round", store)
    own = uuid4().hex
    store.set(f"hello-{rank}", json.dumps({"id": own, "restarts": restarts(), "agent": _agent()}))
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        offer = _make_offer(store, size, own) if rank == 0 else _read(store, "offer")
        if offer is not None and offer["hellos"][rank]["id"] == own:
            store.set(f"accepted-{offer['name']}-{rank}", "")
            if rank == 0 and store.check([f"accepted-{offer['name']}-{other}" for other in range(size)]):
                store.set("begin", offer["name"])
            if store.check(["begin"]) and store.get("begin").decode() == offer["name"]:
                hellos = offer["hellos"]
                agents = tuple(sorted({hello["agent"] for hello in hellos}))
                return LaunchRound(offer["name"], any(hello["restarts"] for hello in hellos), agents)
        time.sleep(POLL_SECONDS)
    missing = [str(other) for other in range(size) if not store.check([f"hello-{other}"])]
    raise UserError(
        f"ranks {', '.join(missing) or 'of an earlier start'} did not join within {timeout.total_seconds():.0f} s: "
        "check that the command was started on all machines and that they reach MASTER_ADDR"
    )


def _make_offer(store: Store, size: int, own: str) -> dict[str, Any] | None:
    """Offer a name for the ranks' present ids; return None until all have announced themselves."""
    if not store.check([f"hello-{other}" for other in range(size)]):
        return None
    hellos = [_read(store, f"hello-{other}") for other in range(size)]
    offer: dict[str, Any] | None = _read(store, "offer")
    if offer is None or offer["hellos"] != hellos:
        offer = {"name": f"{own}-{uuid4().hex}", "hellos": hellos}
        store.set("offer", json.dumps(offer))
    return offer


def _read(store: Store, key: str) -> Any:
    return json.loads(store.get(key)) if store.check([key]) else None


def _agent() -> str:
    """Identify the process that started this one: it outlives a restart of this one."""
    parent, host = os.getppid(), socket.gethostname()
    try:
        return f"{host}:{parent}:{psutil.Process(parent).create_time():.2f}"
    except psutil.Error:  # the first process of a container has no parent, and /proc may hide one of another user
        return f"{host}:{parent}"
