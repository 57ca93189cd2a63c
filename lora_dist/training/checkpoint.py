"""Checkpoints: adapter, AdamW moments and position, whole and free of the strategy that wrote them.

The order of the examples and the dropout are functions of (seed, update, rank), so the count of updates is the only
position there is, and no random state has to be kept. Nothing here needs unpickling; no frozen weight is written.
"""

from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from lora_dist.config import LoraSettings, UserError
from lora_dist.distributed.world import World, barrier
from lora_dist.files import new_folder, read_json, write_json
from lora_dist.model.base import BaseIdentity, load_adapter_state, save_adapter
from lora_dist.run_dir import RunDir
from lora_dist.training.strategy import Replica

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A position in a training."""

    updates: int
    """Updates made so far."""
    adapter: dict[str, Tensor]
    """A and B by PEFT's name."""
    moments: dict[str, Tensor]
    """AdamW's `NAME.exp_avg` and `NAME.exp_avg_sq`."""


def save(
    run: RunDir,
    replica: Replica,
    world: World,
    updates: int,
    recipe: dict[str, Any],
    lora: LoraSettings,
    base: BaseIdentity,
    keep: int,
) -> None:
    """Write the checkpoint after `updates` updates, then delete all but the `keep` newest; all ranks call it."""
    adapter, moments = replica.adapter(), replica.moments()
    if world.is_main and updates not in run.steps():
        with new_folder(run.checkpoint(updates), marker="COMPLETE") as folder:
            save_adapter(folder, adapter, lora, base)
            (folder / OPTIMIZER).write_bytes(tensors_to_bytes(moments))
            write_json(folder / STATE, {"updates": updates, "recipe": recipe})
        run.keep_newest(keep)
    barrier(world)


def load_newest(run: RunDir, recipe: dict[str, Any]) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one.

    Raises:
        UserError: if it was written with another recipe, or is damaged.
    """
    if not (steps := run.steps()):
        return None
    folder = run.checkpoint(steps[-1])
    state = read_json(folder / STATE, f"the checkpoint {folder} is damaged, delete it to resume from an older one")
    if state["recipe"] != recipe:
        raise UserError(f"{run.root} was trained with other settings: {_difference(state['recipe'], recipe)}")
    try:
        moments = load_file(folder / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint {folder} is damaged ({error}): delete it to resume from an older one"
        ) from None
    return Checkpoint(state["updates"], load_adapter_state(folder), moments)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed)
