"""The trained module and its AdamW, wrapped by DDP or DeepSpeed ZeRO behind one interface.

Only this module depends on the strategy (when gradients are reduced, which rank holds which partition of the state).
Processes and their groups are in `distributed/`.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext

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
        weight_decay: float,
        lora_plus_ratio: float = 1.0,
        micro_batch_size: int,
        max_grad_norm: float | None,
    ) -> None:
        """Wrap `module`; all ranks get rank 0's parameters.

        Args:
            world: the ranks.
            module: maps a batch and the factor of its loss to that loss and to sums (n,), as `loss.ReferenceLoss` does.
            adapter: the part of `module` that is trained.
            weight_decay: weight decay of AdamW.
            lora_plus_ratio: see `TrainSettings`.
            micro_batch_size: examples per forward pass and rank.
            max_grad_norm: L2 norm that the gradient is clipped to; None does not clip.
        """
        self._accelerator = world.accelerator
        self._adapter = adapter
        self._max_grad_norm = max_grad_norm
        self._zero = world.zero_stage > 0
        size = adapter.values.numel()
        if self._zero:
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
        else:
            world.accelerator.ddp_handler = DistributedDataParallelKwargs(
                broadcast_buffers=False,  # they are constants
                gradient_as_bucket_view=True,
                bucket_cap_mb=math.ceil(4 * size / 2**20),  # one bucket
            )
        optimizer = adamw(adapter, weight_decay=weight_decay, lora_plus_ratio=lora_plus_ratio, rank=world.rank)
        self._module, self._optimizer = world.accelerator.prepare(module, optimizer)
        load_weights_whole()  # `prepare` has turned partitioning on again

    def backward(self, batch: Batch, *, scale: float, last: bool) -> Tensor:
        """Run one forward and backward pass.

        Args:
            batch: the batch, on any device.
            scale: factor of the loss before its gradient is averaged over ranks.
            last: whether `step` follows; gradients are reduced over ranks only then.

        Returns:
            The module's sums: (n,).
        """
        self._module.train()
        if self._zero:
            self._module.set_gradient_accumulation_boundary(last)
            found: tuple[Tensor, Tensor] = self._module(batch, scale)
            self._module.backward(found[0])
            return found[1]
        with nullcontext() if last else self._accelerator.no_sync(self._module):
            found = self._module(batch, scale)
            self._accelerator.backward(found[0])
        return found[1]

    def step(self, learning_rate: float) -> None:
        """Make one AdamW step with the gradients accumulated since the last one."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero:
            self._module.step()
            return
        if self._max_grad_norm is not None:
            self._accelerator.clip_grad_norm_([self._adapter.values], self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Compute the module's sums (n,) without dropout or gradients."""
        self._module.eval()
        found: tuple[Tensor, Tensor] = self._module(batch)
        return found[1]

    def adapter(self) -> dict[str, Tensor]:
        """Return the trainable matrices, unpartitioned, fp32 on the CPU. Collective: call on all ranks."""
        return self._adapter.split(self._whole())

    def moments(self) -> dict[str, Tensor]:
        """Return `NAME.exp_avg` and `NAME.exp_avg_sq`, unpartitioned, on the CPU. Collective: call on all ranks."""
        whole = {key: self._adapter.split(self._whole(key)) for key in MOMENTS}
        return {f"{name}.{key}": matrix for key, matrices in whole.items() for name, matrix in matrices.items()}

    def load_moments(self, moments: Mapping[str, Tensor], steps: int, idle: Batch) -> None:
        """Load what `moments` returned after `steps` steps, under this or another strategy.

        The module must have been wrapped with the parameters of that step.

        Args:
            moments: AdamW's moments by name.
            steps: optimizer steps made so far.
            idle: a batch without labels. DeepSpeed allocates its moments in a first step, which is made with this batch
                and changes nothing.
        """
        values = self._adapter.values
        whole = {
            key: self._adapter.join({name: moments[f"{name}.{key}"] for name in self._adapter.names}) for key in MOMENTS
        }
        if self._zero:
            self.backward(idle, scale=0.0, last=True)
            self.step(learning_rate=0.0)
            from deepspeed.utils import safe_set_full_optimizer_state

            for key in MOMENTS:
                safe_set_full_optimizer_state(values, whole[key].to(values.device), key)
            for partition in self._optimizer.state.values():
                partition["step"].fill_(float(steps))
            return
        state = {0: {"step": torch.tensor(float(steps)), **whole}}
        # Torch moves each tensor to the right device: the fused kernel needs the step count on the parameter's too.
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _whole(self, key: str | None = None) -> Tensor:
        """Gather the adapter, or one of its moments, from the ranks' partitions: (elements,) on the CPU."""
        values = self._adapter.values
        if not self._zero:
            return (values if key is None else self._optimizer.state[values][key]).detach().to("cpu", copy=True)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = safe_get_full_fp32_param(values) if key is None else safe_get_full_optimizer_state(values, key)
        assert isinstance(whole, Tensor), "DeepSpeed does not know this parameter"
        return whole.detach().to("cpu", torch.float32, copy=True)
