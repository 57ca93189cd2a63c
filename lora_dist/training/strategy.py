"""The trained module and its AdamW as DDP or DeepSpeed ZeRO wraps them, behind one set of verbs.

What is particular to a strategy (when gradients travel, who holds which part of the state) stays in here; processes and
their groups are the business of `distributed.py`.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lora_dist.distributed.launcher import uses_deepspeed
from lora_dist.distributed.world import World, load_weights_whole

MOMENTS = ("exp_avg", "exp_avg_sq")
"""torch's names of AdamW's running means of the gradient and of its square."""


class Replica:
    """The trained module and its AdamW, as the strategy wraps them; to the caller DDP and ZeRO are the same.

    Both average gradients over ranks and hold fp32 parameters and moments; ZeRO holds them in parts.
    """

    def __init__(
        self,
        world: World,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        micro_batch_size: int,
        max_grad_norm: float | None,
    ) -> None:
        """Wrap `module`, whose trained `parameters` go by the names that checkpoints use; all ranks take rank 0's."""
        self._accelerator = world.accelerator
        self._parameters = parameters
        self._max_grad_norm = max_grad_norm
        self._zero = uses_deepspeed()
        if self._zero:
            config = world.accelerator.state.deepspeed_plugin.deepspeed_config
            # One bucket of the adapter's size: DeepSpeed fills a fresh one of 500 million numbers a step otherwise.
            count = sum(parameter.numel() for parameter in parameters.values())
            config["zero_optimization"].update(reduce_bucket_size=count, allgather_bucket_size=count)
            config.update(
                train_micro_batch_size_per_gpu=micro_batch_size,
                gradient_accumulation_steps=1,  # we scale the loss and mark the last micro-batch ourselves
                gradient_clipping=max_grad_norm or 0.0,
                zero_force_ds_cpu_optimizer=False,  # torch's AdamW under offload too: no compiler needed
                zero_allow_untested_optimizer=True,
            )
        self._module, self._optimizer = world.accelerator.prepare(module, optimizer)
        load_weights_whole()  # preparing has told transformers again

    def train(self, *inputs: Any, scale: float, last: bool) -> Tensor:
        """One forward and backward pass; the module returns sums (n,) of which the first is the loss.

        Args:
            inputs: what the module takes.
            scale: factor of the loss before its gradient is averaged over ranks.
            last: whether `step` follows; gradients travel between ranks only then.

        Returns:
            The sums, unscaled and detached: (n,).
        """
        self._module.train()
        if self._zero:
            self._module.set_gradient_accumulation_boundary(last)
            sums: Tensor = self._module(*inputs)
            self._module.backward(sums[0] * scale)
            return sums.detach()
        with nullcontext() if last else self._accelerator.no_sync(self._module):
            sums = self._module(*inputs)
            self._accelerator.backward(sums[0] * scale)
        return sums.detach()

    def step(self, learning_rate: float) -> None:
        """One AdamW update with the gradients gathered since the last one."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero:
            self._module.step()
            return
        if self._max_grad_norm is not None:
            self._accelerator.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, *inputs: Any) -> Tensor:
        """The module's sums (n,) without dropout or gradients."""
        self._module.eval()
        sums: Tensor = self._module(*inputs)
        return sums

    def adapter(self) -> dict[str, Tensor]:
        """The trained parameters, whole, fp32, on the CPU of every rank; every rank has to call it."""
        return {name: self._whole(parameter).cpu() for name, parameter in self._parameters.items()}

    def moments(self) -> dict[str, Tensor]:
        """AdamW's `NAME.exp_avg` and `NAME.exp_avg_sq`, whole, on the CPU of every rank; every rank has to call it."""
        return {
            f"{name}.{key}": self._whole(parameter, key).cpu()
            for name, parameter in self._parameters.items()
            for key in MOMENTS
        }

    def load_moments(self, moments: Mapping[str, Tensor], updates: int, idle: Sequence[Any]) -> None:
        """Take over what `moments` returned after `updates` updates, under this or another strategy.

        The parameters have to be those of that moment already when the module is wrapped. `idle` are inputs without
        labels: DeepSpeed has no moments to write to before a first update, which is made with them and changes nothing.
        """
        if self._zero:
            self.train(*idle, scale=0.0, last=True)
            self.step(learning_rate=0.0)
            from deepspeed.utils import safe_set_full_optimizer_state

            for name, parameter in self._parameters.items():
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, moments[f"{name}.{key}"].to(parameter.device), key)
            for part in self._optimizer.state.values():
                part["step"].fill_(float(updates))
            return
        state = {
            number: {"step": torch.tensor(float(updates)), **{key: moments[f"{name}.{key}"] for key in MOMENTS}}
            for number, name in enumerate(self._parameters)
        }
        # Torch knows which of these have to lie on the parameter's device: the fused kernel wants the step there too.
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _whole(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """A parameter, or one of its moments, put together from the parts that ranks hold."""
        if not self._zero:
            return (parameter if key is None else self._optimizer.state[parameter][key]).detach().clone()
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        assert isinstance(whole, Tensor), "DeepSpeed does not know this parameter"
        return whole.detach().float().clone()
