"""A stand-in for CUDA graphs on a machine without a GPU: it records a function and calls it again at each replay.

It refuses what cannot be captured, and checks at each replay that the tensors from before the recording are the same
and where they were, as a real graph would read and write the old ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_dist.model.kernels import cpu, select

NOT_CAPTURED = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal")
"""Operators with which the host waits for the device, or copies from memory that may be gone at the replay."""


class RecordedGraphs:
    """A `GraphRecorder` that notes what happens to it."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []
        """The object of each recorded method, in order."""
        self.replayed: list[Any] = []
        """That of each replay."""
        self.released = 0

    def record(self, run: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        number = self.released
        run()  # the warm-up
        with _Outside(refuses=NOT_CAPTURED) as recorded:
            run()
        recorded.undo()  # as capturing computes nothing
        owner = getattr(run, "__self__", None)
        self.recorded.append(owner)

        def replay() -> None:
            assert self.released == number, "a graph is replayed that was freed"
            self.replayed.append(owner)
            with torch.enable_grad(), _Outside() as replayed:
                run()
            assert replayed.places == recorded.places, "a replay reads or writes other tensors than the recording"

        return replay

    def release(self) -> None:
        self.released += 1


class _Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory that operators read or write and that was there before."""

    def __init__(self, refuses: tuple[str, ...] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: dict[int, int] = {}
        """Size of each such storage by its address."""
        self._before: list[tuple[UntypedStorage, UntypedStorage]] = []
        self._own: dict[int, Tensor] = {}  # kept alive, so that no address is used twice
        self._refuses = refuses

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in self._refuses:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own and storage.nbytes():
                if self._refuses and storage.data_ptr() not in self.places:
                    self._before.append((storage, storage.clone()))  # type: ignore[no-untyped-call]
                self.places[storage.data_ptr()] = storage.nbytes()
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            address = tensor.untyped_storage().data_ptr()
            if address not in self.places:
                self._own[address] = tensor
        return result

    def undo(self) -> None:
        """Give the memory that was there before its contents back."""
        for storage, before in self._before:
            storage.copy_(before)


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in `values` with memory of their own, unlike those that oneDNN has packed."""
    return (x for x in tree_leaves(values) if isinstance(x, Tensor) and x.layout == torch.strided)


def use_stand_in(
    kernels: ModuleType = cpu, recorder: Callable[[], Any] = RecordedGraphs, shapes: int = 12
) -> list[Any]:
    """Let a CPU have graphs and static shapes, and `kernels` as its kernels; return the recorders made from now on."""
    made: list[Any] = []

    def graph_recorder(_: torch.device) -> Any:
        made.append(recorder())
        return made[-1]

    with_graphs = {**vars(kernels), "graph_recorder": graph_recorder, "STATIC_SHAPES": shapes}
    select.cpu = SimpleNamespace(**with_graphs)  # type: ignore[attr-defined, assignment]
    return made


@contextmanager
def graphs_on_a_cpu(
    kernels: ModuleType = cpu, recorder: Callable[[], Any] = RecordedGraphs, shapes: int = 12
) -> Iterator[list[Any]]:
    """Use the stand-in in the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "cpu", cpu)  # restored afterwards
        yield use_stand_in(kernels, recorder, shapes)
