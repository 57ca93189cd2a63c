"""What may be done to a folder that a command is to write to: no run is lost, and nothing that is not a run is touched.

Apart from `run_dir.py`, which only knows names.
"""

import os
import shutil

from lora_dist.errors import UserError
from lora_dist.files import PART
from lora_dist.run_dir import COMPLETE, RunDir


def require_folder(run: RunDir) -> None:
    """Refuse a root that exists and is not a folder.

    Raises:
        UserError: if it is not.
    """
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"--out {run.root} is a file: name a folder")


def check_output(run: RunDir, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a training may write to the folder, and that no other run would be lost by it; changes nothing.

    Raises:
        UserError: if the folder holds something and neither flag says what to do with it.
    """
    require_folder(run)
    root = run.root
    if root.is_dir() and any(root.iterdir()):
        if overwrite and not run.config.is_file():
            raise UserError(f"--out {root} is not the folder of a run, so --overwrite leaves it alone")
        if resume and not run.config.is_file() and any(not p.name.startswith(PART) for p in root.iterdir()):
            raise UserError(f"--out {root} is not the folder of a run, so there is nothing to --resume there")
        if not (resume or overwrite):
            raise UserError(f"--out {root} holds another run: add --resume, --overwrite, or name another folder")
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"--out {root} cannot be written to: name another folder")


def prepare_output(run: RunDir, *, overwrite: bool) -> None:
    """Make the folder, without the run it held if `overwrite`; to be called when all else has been checked.

    What a kill left half-written or half-deleted is removed.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    # Not the configuration: without it, what a kill in the middle of this leaves would not count as a run.
    old = [path for path in run.root.iterdir() if path != run.config] if overwrite else []
    incomplete = [path for path in run.checkpoints.glob("step-*") if not (path / COMPLETE).exists()]
    for path in (*old, *run.root.rglob(f"{PART}*"), *incomplete):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if overwrite:
        run.config.unlink(missing_ok=True)
