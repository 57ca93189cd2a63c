"""The optional experiment tracker, through Accelerate: how a run is named in it, and where its logs are."""

import os
from pathlib import Path
from typing import Any

from lora_dist.distributed.world import World
from lora_dist.run_dir import RunDir

PROJECT = "lora_dist"
"""Name of the project, or of TensorBoard's folder in the run directory."""


def start_tracker(world: World, run: RunDir, settings: dict[str, Any], *, resumed: bool) -> str | None:
    """Start the tracker that the world was made with. Collective: call on all ranks.

    Args:
        world: the ranks.
        run: the run directory, whose path is the run's name in trackio.
        settings: shown with the run.
        resumed: whether trackio continues a run of that name.

    Returns:
        Where its logs are, on rank 0; None without a tracker and on other ranks.
    """
    plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
    trackio = {"name": str(run.root), "resume": "allow" if resumed else "never"}
    # TensorBoard takes no lists and no None.
    world.accelerator.init_trackers(PROJECT, config=plain, init_kwargs={"trackio": trackio})
    found = world.accelerator.trackers if world.is_main else []
    return next((_location(tracker, run) for tracker in found), None)


def _location(tracker: Any, run: RunDir) -> str:
    if tracker.name == "tensorboard":
        return f"TensorBoard logs are in {run.root / PROJECT}: tensorboard --logdir {run.root}"
    if tracker.name == "trackio":
        hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
        folder = os.environ.get("TRACKIO_DIR", hub / "trackio")
        return f"trackio's logs are in {folder}: trackio show --project {PROJECT}"
    here = getattr(tracker.tracker, "url", None) or getattr(tracker.tracker, "dir", None)  # offline there is no address
    return f"{tracker.name}'s logs are in {here}"
