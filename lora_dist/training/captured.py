"""The forward and backward pass as CUDA graphs, one for each static shape.

On an H200, Python takes 47 to 61 ms to launch the kernels of a step of GPT-2 Small, which compute for 4. A graph
launches them together. It ends with the gradient; what follows is the strategy's, and has few kernels, as the adapter
is one parameter.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm

from lora_dist.config import TrainSettings
from lora_dist.data.collate import Batch
from lora_dist.data.shapes import BatchShape
from lora_dist.model.kernels.graphs import GraphRecorder
from lora_dist.training.loss import ReferenceLoss

log = logging.getLogger(__name__)


def why_eager(cfg: TrainSettings, zero_stage: int, *, offload: bool) -> str | None:
    """Return why the steps of a training on a GPU are not captured; None if they are.

    Args:
        cfg: hyperparameters.
        zero_stage: see `launcher.Strategy`; 0 without DeepSpeed.
        offload: whether DeepSpeed keeps the optimizer state in the host's memory.
    """
    reasons = {
        "--train.cuda-graphs is off": cfg.cuda_graphs == "off",
        "ZeRO-3 gathers the weights from Python": zero_stage == 3,
        "the optimizer state is offloaded": offload,
        "--train.gradient-checkpointing is on": cfg.gradient_checkpointing,
        "--train.refs-per-mr is above 1": cfg.refs_per_mr > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class CapturedLoss(nn.Module):
    """A `ReferenceLoss` that replays a graph in training if there is one for the batch's shape."""

    def __init__(self, loss: ReferenceLoss) -> None:
        """Wrap `loss`, at first without graphs."""
        super().__init__()
        self.loss = loss
        self._graphs: dict[tuple[BatchShape, ...], _Graph] = {}
        self._recorder: GraphRecorder | None = None

    def forward(self, batch: Batch, scale: float | Sequence[float] = 1.0, first: int = 0) -> tuple[Tensor, Tensor]:
        """See `ReferenceLoss.forward`."""
        graph = self._graphs.get(batch.parts) if self.training and torch.is_grad_enabled() else None
        if graph is None:
            found: tuple[Tensor, Tensor] = self.loss(batch, scale, first)
            return found
        replayed: tuple[Tensor, Tensor] = _Replay.apply(self.loss.adapter.values, graph, batch, scale)  # type: ignore[no-untyped-call]
        return replayed

    def capture(self, batches: Iterable[Batch], recorder: GraphRecorder, *, show_progress: bool) -> None:
        """Record a graph for each shape, or none and warn if that fails. The module must be where it is trained.

        Args:
            batches: a batch of each shape, the one that needs the most memory first.
            recorder: records the graphs.
            show_progress: whether to show a progress bar.
        """
        self._recorder = recorder
        self.train()
        values = self.loss.adapter.values.detach()
        gradient, results = torch.empty_like(values), values.new_empty(1 + 2 * len(values))
        try:
            bar = tqdm(list(batches), desc="capture", unit="graph", leave=False, disable=not show_progress)
            self._graphs = {
                batch.parts: _Graph(self.loss, batch, gradient.detach(), results, recorder) for batch in bar
            }
        except RuntimeError as error:
            # The end of a failed recording raises an error of its own.
            log.warning("steps run eagerly, as capturing CUDA graphs failed: %s", error.__context__ or error)
            self.close()
        else:
            log.info("captured %d CUDA graphs", len(self._graphs))
        finally:
            self.loss.adapter.release()  # else its gradient would pass through the capture's stream

    def close(self) -> None:
        """Free the graphs; steps run eagerly from now on."""
        self._graphs = {}
        if self._recorder is not None:
            self._recorder.release()


class _Graph:
    """The forward and backward pass for one shape, from and into tensors that stay where they are."""

    def __init__(
        self, loss: ReferenceLoss, batch: Batch, gradient: Tensor, results: Tensor, recorder: GraphRecorder
    ) -> None:
        """Record the pass.

        Args:
            loss: the module.
            batch: a batch of the shape.
            gradient: where to write the gradient of the adapters: (adapters, elements).
            results: where to write the loss and then the sums of each adapter: (1 + 2 adapters,).
            recorder: records the graph.
        """
        self.gradient, self.results = gradient, results
        self._loss = loss
        self._packed = batch.pack().to(gradient.device)
        self._batch, self._scale = batch.unpack(self._packed), results.new_zeros(len(gradient))
        stacked = loss.adapter.stacked
        self._replay = recorder.record(self._compute, () if stacked is None else stacked.generators)

    def _compute(self) -> None:
        loss, sums = self._loss(self._batch, self._scale)
        (gradient,) = torch.autograd.grad(loss, self._loss.adapter.values)
        self.gradient.copy_(gradient)
        self.results[0].copy_(loss.detach())
        self.results[1:].copy_(sums.view(-1))

    def replay(self, batch: Batch, scale: float | Sequence[float]) -> None:
        """Compute another batch of the shape; the host waits neither for the copy nor for the result."""
        self._packed.copy_(batch.pack(), non_blocking=True)
        for own, value in zip(self._scale, [scale] if isinstance(scale, int | float) else scale, strict=True):
            own.fill_(value)
        self._replay()


class _Replay(torch.autograd.Function):
    """A replay as a function of the adapter, so that hooks of DDP and ZeRO get its gradient as from eager layers."""

    @staticmethod
    def forward(
        ctx: Any, _: Tensor, graph: _Graph, batch: Batch, scale: float | Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        graph.replay(batch, scale)
        ctx.graph = graph
        loss, sums = graph.results[0].clone(), graph.results[1:].clone().view(-1, 2)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.graph.gradient * grad_loss, None, None, None  # new, as the next replay overwrites it
