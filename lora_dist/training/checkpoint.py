"""Checkpoints: adapter, AdamW's moments and the step, unpartitioned and independent of the strategy.

The order of the examples and the dropout are functions of (seed, step, rank), so the step is the whole position of a
training and no random state is saved. Loading needs no unpickling, and no frozen weight is written.
"""

import shutil
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from lora_dist.config import LoraSettings
from lora_dist.distributed.collectives import barrier
from lora_dist.distributed.world import World
from lora_dist.errors import UserError
from lora_dist.files import new_folder, read_json, write_json
from lora_dist.model.adapter import load_adapter_state, save_adapter
from lora_dist.model.base import BaseIdentity
from lora_dist.run_dir import COMPLETE, RunDir
from lora_dist.training.strategy import TrainingStrategy

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after some steps."""

    steps: int
    """Optimizer steps made so far."""
    adapter: dict[str, Tensor]
    """A (r, in) and B (out, r) by PEFT's names."""
    moments: dict[str, Tensor]
    """AdamW's `NAME.exp_avg` and `NAME.exp_avg_sq`, each in its parameter's shape."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training."""

    run: RunDir
    identity: dict[str, Any]
    """Everything that determines the result of the training; a checkpoint with another identity is refused."""
    lora: LoraSettings
    base: BaseIdentity
    keep: int
    """How many of the newest checkpoints to keep."""

    def save(self, steps: int, strategy: TrainingStrategy, world: World) -> None:
        """Write the checkpoint after `steps` steps, then delete the oldest. Collective: call on all ranks."""
        adapter, moments = strategy.adapter(), strategy.moments()
        if world.is_main and steps not in self.complete():
            with new_folder(self.run.checkpoint(steps), marker=COMPLETE) as folder:
                save_adapter(folder, adapter, self.lora, self.base)
                (folder / OPTIMIZER).write_bytes(tensors_to_bytes(moments))
                write_json(folder / STATE, {"steps": steps, "identity": self.identity})
            self._delete_old()
        barrier(world)

    def newest(self) -> Checkpoint | None:
        """Load the newest complete checkpoint; return None if there is none.

        Raises:
            UserError: if it belongs to another training, or is damaged.
        """
        if not (complete := self.complete()):
            return None
        folder = self.run.checkpoint(complete[-1])
        state = read_json(folder / STATE, f"the checkpoint {folder} is damaged, delete it to resume from an older one")
        if "identity" not in state:  # before 2026-11-26
            state = {"steps": state["updates"], "identity": state["recipe"]}
        if state["identity"] != self.identity:
            difference = _difference(state["identity"], self.identity)
            raise UserError(f"{self.run.root} was trained with other settings: {difference}")
        try:
            moments = load_file(folder / OPTIMIZER)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint {folder} is damaged ({error}): delete it to resume from an older one"
            ) from None
        return Checkpoint(state["steps"], load_adapter_state(folder), moments)

    def complete(self) -> list[int]:
        """List the steps after which a complete checkpoint was written, oldest first."""
        markers = self.run.checkpoints.glob(f"step-*/{COMPLETE}")
        return sorted(int(marker.parent.name.removeprefix("step-")) for marker in markers)

    def _delete_old(self) -> None:
        for steps in self.complete()[: -self.keep]:
            folder = self.run.checkpoint(steps)
            (folder / COMPLETE).unlink()  # first, so that a half-deleted checkpoint never counts as complete
            shutil.rmtree(folder)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed)
