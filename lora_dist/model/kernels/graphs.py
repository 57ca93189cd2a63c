"""CUDA graphs: kernels that are recorded once and then launched together, as the host takes longer to launch them."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class GraphRecorder(Protocol):
    """Records functions, which must read and write the same tensors in each call."""

    def record(self, run: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        """Call `run`, record what it does on the device, and return a function that does it again.

        Args:
            run: the function.
            generators: generators besides the default one that it draws from.

        Raises:
            RuntimeError: if it needs too much memory or does what cannot be recorded.
        """
        ...

    def release(self) -> None:
        """Free all recordings and their memory."""
        ...


class CudaGraphs:
    """Records CUDA graphs that share one memory pool, so record the one that needs the most memory first.

    The pool is safe for graphs that run one after the other and leave no result in it.
    """

    def __init__(self, device: torch.device) -> None:
        """Set up a pool and a stream on `device`."""
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, run: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        """See `GraphRecorder`. Random numbers follow from the generators' seeds before each replay."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        for generator in generators:  # the default one is registered by itself
            graph.register_generator_state(generator)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                run()  # so that libraries allocate their workspaces outside the recording
                # Only this thread's calls matter: NCCL's watchdog calls CUDA at any time.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    run()
        except RuntimeError:
            # Before torch 2.13, a failed recording leaves the generators as if they were still recorded.
            for generator in (torch.cuda.default_generators[self._stream.device.index], *generators):
                generator.graphsafe_set_state(generator.clone_state())
            raise
        current.wait_stream(self._stream)
        self._graphs.append(graph)
        return graph.replay

    def release(self) -> None:
        """See `GraphRecorder`."""
        torch.cuda.synchronize()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()  # as torch may refuse a pool whose graphs are all gone
