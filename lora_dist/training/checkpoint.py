"""Checkpoints: adapter, AdamW's moments and the step, unpartitioned and independent of the strategy.

The order of the examples and the dropout are functions of (seed, step, rank), so the step is the whole position of a
training and no random state is saved. Loading needs no unpickling, and no frozen weight is written.
"""

from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from lora_dist.config import LoraSettings, Settings
from lora_dist.config_io import as_options, read_config, read_settings
from lora_dist.distributed.collectives import barrier
from lora_dist.distributed.world import World
from lora_dist.errors import UserError
from lora_dist.files import new_folder, read_json, remove, require_readable, write_json
from lora_dist.model.adapter import load_adapter_state, save_adapter
from lora_dist.model.base import BaseIdentity
from lora_dist.run_dir import COMPLETE, RunDir
from lora_dist.training.strategy import TrainingStrategy

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_SPLITS = (("training", "train"), ("dev", "dev"))


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

    def save(self, steps: int, strategy: TrainingStrategy, world: World, number: int = 0) -> None:
        """Write the checkpoint of adapter `number` after `steps` steps. Collective: call on all ranks."""
        adapter, moments = strategy.adapter(number), strategy.moments(number)
        if world.is_main and steps not in self.complete():
            with new_folder(self.run.checkpoint(steps), marker=COMPLETE) as folder:
                save_adapter(folder, adapter, self.lora, self.base)
                (folder / OPTIMIZER).write_bytes(tensors_to_bytes(moments))
                # The field names are those of the first format; for a day they were steps and identity.
                write_json(folder / STATE, {"updates": steps, "recipe": self.identity})
        barrier(world)

    def newest(self, until: int | None = None) -> Checkpoint | None:
        """Load the newest complete checkpoint, after at most `until` steps; return None if there is none.

        Raises:
            UserError: if it belongs to another training, or is damaged.
        """
        if not (complete := [steps for steps in self.complete() if until is None or steps <= until]):
            self._require_new()
            return None
        folder = self.run.checkpoint(complete[-1])
        for file in folder.iterdir():
            require_readable(file)
        damage = f"the checkpoint {folder} is damaged, delete it to resume from an older one"
        state = read_json(folder / STATE, damage)
        steps, identity = state.get("updates", state.get("steps")), state.get("recipe", state.get("identity"))
        if steps != complete[-1] or not isinstance(identity, dict):
            raise UserError(f"{damage}: {folder / STATE} is not that of step {complete[-1]}")
        # A setting that the checkpoint does not record is newer, and had its default.
        defaults = as_options(Settings(), "lora", "train", "data")
        identity = {**{name: defaults[name] for name in self.identity if name in defaults}, **identity}
        if identity != self.identity:
            raise UserError(f"{self.run.root} was trained with other settings: {_difference(identity, self.identity)}")
        try:
            moments = load_file(folder / OPTIMIZER)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{damage} ({error})") from None
        return Checkpoint(steps, load_adapter_state(folder, f"delete {folder} to resume from an older one"), moments)

    def _require_new(self) -> None:
        """Refuse to train anew over a run with other settings, or over an adapter."""
        if not self.run.config.is_file():
            return
        config, stored = read_config(self.run), read_settings(self.run)
        options = as_options(stored, "model", "lora", "train", "decode", "data")
        old = {name: options.get(name) if name.startswith("--") else value for name, value in self.identity.items()}
        old |= {f"{name} data": config["data"].get(split) for name, split in _SPLITS if f"{name} data" in old}
        if old != self.identity:
            raise UserError(f"{self.run.root} was trained with other settings: {_difference(old, self.identity)}")
        if self.run.adapter.is_dir():
            raise UserError(
                f"{self.run.root} has an adapter and no checkpoint, so there is nothing to --resume: decode it, or "
                "name another folder"
            )

    def complete(self) -> list[int]:
        """See `complete_steps`."""
        return complete_steps(self.run)

    def delete_old(self, world: World) -> None:
        """Delete all but the newest, on rank 0; of runs that train together, once all of them have saved theirs."""
        if not world.is_main:
            return
        for steps in self.complete()[: -self.keep]:
            folder = self.run.checkpoint(steps)
            if not folder.is_symlink():
                (folder / COMPLETE).unlink()  # first, so that a half-deleted checkpoint never counts as complete
            remove(folder)


def complete_steps(run: RunDir) -> list[int]:
    """List the steps after which a complete checkpoint was written, oldest first."""
    return sorted(step for step, folder in run.checkpoint_folders().items() if (folder / COMPLETE).exists())


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    # What only one of them has follows from another difference: the dev data matters if an epoch is selected by it.
    shown = [key for key in changed if key in old and key in new] or changed
    differences = ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in shown)
    return f"{differences}; keep the old, or name another --out"
