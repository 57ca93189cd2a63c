"""What the machines of a run must have in common: one run directory, the same command, the same files and versions."""

import os
import socket
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_dist.distributed.collectives import gather_objects, on_main
from lora_dist.distributed.world import World
from lora_dist.errors import UserError
from lora_dist.files import PART

FILE_PATIENCE = 30.0
"""Seconds a file of rank 0 may take to appear on another machine: NFS caches a folder that long (acdirmin)."""


def require_shared(world: World, folder: Path) -> None:
    """Refuse a run directory that not every machine sees. Collective: call on all ranks.

    Raises:
        UserError: on every rank, if a file that rank 0 makes in `folder` does not appear to another.
    """

    def leave_mark() -> tuple[str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{PART}shared-{uuid4().hex}"
        (folder / name).touch()
        return name, socket.gethostname()

    name, head = on_main(world, leave_mark)
    mark, deadline = folder / name, time.monotonic() + FILE_PATIENCE
    while not (seen := os.path.exists(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = sorted(set(gather_objects(world, [] if seen else [socket.gethostname()])))
    if world.is_main:
        mark.unlink()
    if blind:
        raise UserError(
            f"--out {folder} of {head} is not the same folder on {', '.join(blind)}: name one on a file system that "
            "all machines share"
        )


def require_agreement(world: World, values: dict[str, Any]) -> None:
    """Raise on every rank if settings, files or versions differ between ranks. Collective: call on all ranks.

    Raises:
        UserError: on every rank, if one of the `values` is not rank 0's on another.
    """
    (head, expected), *others = gather_objects(world, [(socket.gethostname(), values)])
    for host, found in others:
        for name, value in expected.items():
            if found[name] != value:
                raise UserError(
                    f"{name} is {value} on {head} and {found[name]} on {host}: give the same command on all machines, "
                    "with the same files and versions"
                )
