"""The trained module and its AdamW, alone or wrapped by DDP or DeepSpeed ZeRO, behind one interface.

Only this module depends on the strategy (when gradients are reduced, which rank holds which partition of the state).
Processes and their groups are in `distributed/`.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from lora_dist.data.collate import Batch
from lora_dist.distributed.compat import load_weights_whole
from lora_dist.distributed.world import World
from lora_dist.model.flat_adapter import FlatAdapter
from lora_dist.training.lora_plus import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Torch's names for AdamW's two moments, the running means of the gradient and of its square."""


class TrainingStrategy:
    """The trained module and its AdamW, with the same interface under DDP and ZeRO.

    Both average gradients over ranks and hold fp32 parameters and moments, which ZeRO partitions.
    """

    def __init__(
        self,
        world: World,
        module: nn.Module,
        adapter: FlatAdapter,
        *,
        weight_decay: float | Sequence[float],
        schedules: Sequence[Hashable] = ((),),
        lora_plus_ratio: float = 1.0,
        micro_batch_size: int,
        max_grad_norm: float | None,
    ) -> None:
        """Wrap `module`; all ranks get rank 0's parameters.

        Args:
            world: the ranks.
            module: maps a batch and the factor of its loss to that loss and to sums (n,), as `loss.ReferenceLoss` does.
            adapter: the part of `module` that is trained.
            weight_decay: weight decay of AdamW, one or one for each adapter. Several adapters need a world of one rank.
            schedules: what the learning rate of each adapter follows from. AdamW computes those with the same rate and
                weight decay together, as one alone does not fill a GPU.
            lora_plus_ratio: see `TrainSettings`.
            micro_batch_size: examples per forward pass and rank.
            max_grad_norm: L2 norm that the gradient is clipped to; None does not clip.
        """
        assert adapter.count == 1 or (world.size == 1 and not world.zero_stage), "one adapter is sharded over ranks"
        self._accelerator = world.accelerator
        self._adapter = adapter
        self._max_grad_norm = max_grad_norm
        self._zero = world.zero_stage > 0
        self._wrapped = self._zero or world.size > 1
        decays = [weight_decay] if isinstance(weight_decay, float) else weight_decay
        values = adapter.values
        # Views of `values`, which AdamW changes in place, as adapters may have learning rates of their own.
        self._rows = [values] if adapter.count == 1 else [row.detach().requires_grad_() for row in values]
        self._groups = _alike(list(zip(decays, schedules, strict=True)))
        """Adapters of each of AdamW's groups."""
        groups = [{"params": [self._rows[n] for n in own], "weight_decay": decays[own[0]]} for own in self._groups]
        self._unwrapped = module.train()
        self._module: Any = module
        self._optimizer: Any = adamw(groups, adapter, lora_plus_ratio=lora_plus_ratio, rank=world.rank)
        if self._zero:
            _configure_deepspeed(world, values.numel(), micro_batch_size, max_grad_norm)
        elif self._wrapped:
            _configure_ddp(world, values.numel())
        if self._wrapped:
            self._module, self._optimizer = world.accelerator.prepare(module, self._optimizer)
            load_weights_whole()  # `prepare` has turned partitioning on again

    def seed_dropout(self, seeds: Sequence[int]) -> None:
        """Seed the dropout of each adapter until it is seeded again: (adapters,)."""
        self._adapter.seed_dropout(seeds)

    def backward(self, batch: Batch, *, scale: float | Sequence[float], last: bool) -> Tensor:
        """Run one forward and backward pass.

        Args:
            batch: the batch, on any device, with a part for each adapter.
            scale: factor of the loss, one or one for each adapter, before its gradient is averaged over ranks.
            last: whether `step` follows; gradients are reduced over ranks only then.

        Returns:
            The module's sums: (adapters, 2).
        """
        # Not each time, as a walk through all modules takes as long as a step on a GPU. DeepSpeed's flag stays True.
        if not self._unwrapped.training:
            self._module.train()
        if self._zero:
            self._module.set_gradient_accumulation_boundary(last)
            found: tuple[Tensor, Tensor] = self._module(batch, scale)
            self._module.backward(found[0])
            return found[1]
        with nullcontext() if last or not self._wrapped else self._accelerator.no_sync(self._module):
            found = self._module(batch, scale)
            found[0].backward()  # type: ignore[no-untyped-call]
        return found[1]

    def step(self, learning_rate: float | Sequence[float]) -> None:
        """Make one AdamW step with the gradients accumulated since the last one, and one rate or one per adapter."""
        rates = [learning_rate] if isinstance(learning_rate, float) else learning_rate
        for group, own in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = rates[own[0]]
        if self._zero:
            self._module.step()
            return
        values = self._adapter.values
        if len(self._rows) > 1:
            assert values.grad is not None, "a step needs a gradient"
            for row, gradient in zip(self._rows, values.grad, strict=True):
                row.grad = gradient
        if self._max_grad_norm is not None:
            for row in self._rows:
                torch.nn.utils.clip_grad_norm_([row], self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        values.grad = None

    @torch.no_grad()
    def evaluate(self, batch: Batch, adapter: int = 0) -> Tensor:
        """Compute the sums of one adapter without dropout or gradients: (2,)."""
        self._module.eval()
        found: tuple[Tensor, Tensor] = self._module(batch, 1.0, adapter)
        return found[1][0]

    def adapter(self, number: int = 0) -> dict[str, Tensor]:
        """Return the matrices of an adapter, unpartitioned, fp32 on the CPU. Collective: call on all ranks."""
        return self._adapter.split(self._whole(number))

    def moments(self, number: int = 0) -> dict[str, Tensor]:
        """Return an adapter's `NAME.exp_avg` and `NAME.exp_avg_sq`, in the same way. Collective: call on all ranks."""
        whole = {key: self._adapter.split(self._whole(number, key)) for key in MOMENTS}
        return {f"{name}.{key}": matrix for key, matrices in whole.items() for name, matrix in matrices.items()}

    def load_moments(self, moments: Sequence[Mapping[str, Tensor]], steps: int, idle: Batch) -> None:
        """Load what `moments` returned after `steps` steps, under this or another strategy.

        The module must have been wrapped with the parameters of that step.

        Args:
            moments: AdamW's moments of each adapter by name: (adapters,).
            steps: optimizer steps made so far.
            idle: a batch without labels. DeepSpeed allocates its moments in a first step, which is made with this batch
                and changes nothing.
        """
        names, join = self._adapter.names, self._adapter.join
        whole = [{key: join({name: own[f"{name}.{key}"] for name in names}) for key in MOMENTS} for own in moments]
        if self._zero:
            values = self._adapter.values
            self.backward(idle, scale=0.0, last=True)
            self.step(learning_rate=0.0)
            from deepspeed.utils import safe_set_full_optimizer_state

            for key in MOMENTS:
                safe_set_full_optimizer_state(values, whole[0][key][None].to(values.device), key)
            for partition in self._optimizer.state.values():
                partition["step"].fill_(float(steps))
            return
        shape = self._rows[0].shape
        state = {
            place: {"step": torch.tensor(float(steps)), **{key: whole[number][key].view(shape) for key in MOMENTS}}
            for place, number in enumerate(number for own in self._groups for number in own)
        }
        # Torch moves each tensor to the right device: the fused kernel needs the step count on the parameter's too.
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _whole(self, number: int, key: str | None = None) -> Tensor:
        """Gather an adapter, or one of its moments, from the ranks' partitions: one row of `values` on the CPU."""
        values = self._adapter.values
        if not self._zero:
            row = self._rows[number]
            return (row if key is None else self._optimizer.state[row][key]).detach().to("cpu", copy=True)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = safe_get_full_fp32_param(values) if key is None else safe_get_full_optimizer_state(values, key)
        assert isinstance(whole, Tensor), "DeepSpeed does not know this parameter"
        return whole.detach().to("cpu", torch.float32, copy=True)


def _alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """Group the indices of equal keys."""
    found: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return list(found.values())


def _configure_ddp(world: World, size: int) -> None:
    """Choose DDP's options; `size` is the number of trainable parameters."""
    world.accelerator.ddp_handler = DistributedDataParallelKwargs(
        broadcast_buffers=False,  # they are constants
        gradient_as_bucket_view=True,
        bucket_cap_mb=math.ceil(4 * size / 2**20),  # one bucket
    )


def _configure_deepspeed(world: World, size: int, micro_batch_size: int, max_grad_norm: float | None) -> None:
    """Complete DeepSpeed's configuration; `size` is the number of trainable parameters."""
    config = world.accelerator.state.deepspeed_plugin.deepspeed_config
    # One bucket of the adapter's size: by default DeepSpeed allocates one of 500 million elements per step.
    config["zero_optimization"].update(reduce_bucket_size=size, allgather_bucket_size=size)
    config.update(
        train_micro_batch_size_per_gpu=micro_batch_size,
        gradient_accumulation_steps=1,  # `backward` scales the loss and marks the last micro-batch itself
        gradient_clipping=max_grad_norm or 0.0,
        zero_force_ds_cpu_optimizer=False,  # torch's AdamW under offload too, which needs no compiler
        zero_allow_untested_optimizer=True,
    )
