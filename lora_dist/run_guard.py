"""Guards of output folders: no run is lost by accident, and no folder that is not a run is changed.

Separate from `run_dir.py`, which only defines names.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_dist.errors import UserError
from lora_dist.files import PART, remove
from lora_dist.run_dir import COMPLETE, RunDir

log = logging.getLogger(__name__)


def is_run(root: Path) -> bool:
    """Return whether a folder is a run: its config.json has our settings, not those of a model."""
    try:
        config = json.loads(RunDir(root).config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    settings = config.get("settings") if isinstance(config, dict) else None
    return isinstance(settings, dict) and {"model", "lora", "train"} <= settings.keys()


def began_here(run: RunDir, agents: Sequence[str]) -> bool:
    """Return whether one of these `agents` of a launcher began the run in the folder (see `launch_round`)."""
    if not is_run(run.root):
        return False
    recorded = json.loads(run.config.read_text(encoding="utf-8")).get("launch", [])
    return not set(agents).isdisjoint(recorded)


def require_folder(run: RunDir) -> None:
    """Refuse a run directory that exists and is not a folder.

    Raises:
        UserError: if it is a file.
    """
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"--out {run.root} is a file: name a folder")


def require_writable(path: Path) -> None:
    """Refuse an output folder that cannot be created or written to, without changing anything.

    Raises:
        UserError: if it cannot.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"--out {path} is a link to {os.readlink(path)}, which does not exist: name another folder")
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UserError(f"--out {path} cannot be written to: name another folder")


def check_output(run: RunDir, *, resume: bool, overwrite: bool) -> None:
    """Check that a training may write to the run's folder, without changing anything.

    Raises:
        UserError: if the folder cannot be written to or is not a run's, or holds a run and neither flag is set.
    """
    root = run.root
    require_folder(run)
    require_writable(root)
    if not has_content(root):
        return
    if not is_run(root):
        action = "--overwrite does not delete it" if overwrite else "nothing is written there"
        raise UserError(f"--out {root} is not the folder of a run, so {action}: name another folder")
    if not (resume or overwrite):
        raise UserError(f"--out {root} holds another run: add --resume, --overwrite, or name another folder")


def has_content(root: Path) -> bool:
    """Return whether a folder exists and holds more than a lock and what a kill left half-written."""
    ignored = (PART, RunDir(root).lock.name)
    return root.is_dir() and any(not path.name.startswith(ignored) for path in root.iterdir())


def prepare_output(run: RunDir, *, overwrite: bool) -> None:
    """Create the run's folder, and with `overwrite` delete the run in it; call this after all other checks.

    Also removes files and checkpoints that a kill left half-written or half-deleted.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    # The configuration goes last: without it, the rest would not be recognised as a run after a kill.
    old = [path for path in run.root.iterdir() if path not in (run.config, run.lock)] if overwrite else []
    incomplete = [folder for folder in run.checkpoint_folders().values() if not (folder / COMPLETE).exists()]
    for path in (*old, *run.root.rglob(f"{PART}*"), *incomplete):
        remove(path)
    if overwrite:
        run.config.unlink(missing_ok=True)


@contextmanager
def exclusive(run: RunDir) -> Iterator[None]:
    """Keep other processes from writing to the run during the block, also those on other machines.

    The kernel (of an NFS server, too) releases the lock of a process that ends, however it ends. The folder is created,
    and removed again if nothing was written to it.

    Raises:
        UserError: if the folder cannot be written to, or another process holds the lock, saying which.
    """
    require_writable(run.root)
    created = [folder for folder in (run.root, *run.root.parents) if not folder.exists()]
    run.root.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(run.lock, os.O_CREAT | os.O_RDWR, 0o666)
    except PermissionError:  # another user's
        raise UserError(
            f"{run.lock} cannot be written to: name another folder, or ask its owner for the right"
        ) from None
    try:
        _lock(descriptor, run)
        os.ftruncate(descriptor, 0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        if created and not has_content(run.root):
            shutil.rmtree(run.root, ignore_errors=True)
            for folder in created[1:]:
                with suppress(OSError):
                    folder.rmdir()
        os.close(descriptor)


def _lock(descriptor: int, run: RunDir) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
            log.warning("%s cannot be locked (%s): start only one process that writes to it", run.root, error.strerror)
            return
        holder = {"host": "?", "pid": "?", "since": "?"}
        with suppress(ValueError):
            holder |= json.loads(os.pread(descriptor, 4096, 0))
        raise UserError(
            f"{run.root} is being written to by process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}: wait until it ends, or name another folder"
        ) from None
