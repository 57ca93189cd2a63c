"""Guards of output folders: no run is lost by accident, and no folder that is not a run is changed.

Separate from `run_dir.py`, which only defines names.
"""

import os
import shutil

from lora_dist.errors import UserError
from lora_dist.files import PART
from lora_dist.run_dir import COMPLETE, RunDir


def require_folder(run: RunDir) -> None:
    """Refuse a run directory that exists and is not a folder.

    Raises:
        UserError: if it is a file.
    """
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"--out {run.root} is a file: name a folder")


def check_output(run: RunDir, *, resume: bool, overwrite: bool) -> None:
    """Check that a training may write to the run's folder, without changing anything.

    Raises:
        UserError: if the folder cannot be written to or is not a run's, or holds a run and neither flag is set.
    """
    require_folder(run)
    root = run.root
    if root.is_dir() and any(root.iterdir()):
        if overwrite and not run.config.is_file():
            raise UserError(f"--out {root} is not the folder of a run, so --overwrite does not delete it")
        if resume and not run.config.is_file() and any(not p.name.startswith(PART) for p in root.iterdir()):
            raise UserError(f"--out {root} is not the folder of a run, so there is nothing to --resume there")
        if not (resume or overwrite):
            raise UserError(f"--out {root} holds another run: add --resume, --overwrite, or name another folder")
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"--out {root} cannot be written to: name another folder")


def prepare_output(run: RunDir, *, overwrite: bool) -> None:
    """Create the run's folder, and with `overwrite` delete the run in it; call this after all other checks.

    Also removes files and checkpoints that a kill left half-written or half-deleted.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    # The configuration goes last: without it, the rest would not be recognised as a run after a kill.
    old = [path for path in run.root.iterdir() if path != run.config] if overwrite else []
    incomplete = [path for path in run.checkpoints.glob("step-*") if not (path / COMPLETE).exists()]
    for path in (*old, *run.root.rglob(f"{PART}*"), *incomplete):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if overwrite:
        run.config.unlink(missing_ok=True)
