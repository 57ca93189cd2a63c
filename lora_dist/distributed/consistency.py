"""Checks that the machines of a run share one run directory and use the same settings, files and versions."""

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
"""Seconds that a file of rank 0 may take to appear on another machine: NFS caches a folder that long (acdirmin)."""


def require_shared(world: World, folder: Path) -> None:
    """Refuse a run directory that the machines do not share. Collective: call on all ranks.

    Raises:
        UserError: on every rank, if a file that rank 0 creates in `folder` does not appear on another rank.
    """

    def create_marker() -> tuple[str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{PART}shared-{uuid4().hex}"
        (folder / name).touch()
        return name, socket.gethostname()

    name, main_host = on_main(world, create_marker)
    marker, deadline = folder / name, time.monotonic() + FILE_PATIENCE
    while not (visible := os.path.exists(marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    without = sorted(set(gather_objects(world, [] if visible else [socket.gethostname()])))
    if world.is_main:
        marker.unlink()
    if without:
        raise UserError(
            f"--out {folder} of {main_host} is not the same folder on {', '.join(without)}: name one on a file system "
            "that all machines share"
        )


def require_agreement(world: World, values: dict[str, Any]) -> None:
    """Raise on every rank if settings, files or versions differ between ranks. Collective: call on all ranks.

    Raises:
        UserError: on every rank, if one of the `values` of another rank differs from rank 0's.
    """
    (main_host, expected), *others = gather_objects(world, [(socket.gethostname(), values)])
    for host, found in others:
        for name, value in expected.items():
            if found[name] != value:
                raise UserError(
                    f"{name} is {value} on {main_host} and {found[name]} on {host}: give the same command on all "
                    "machines, with the same files and versions"
                )
