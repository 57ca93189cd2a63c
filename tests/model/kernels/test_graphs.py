"""CUDA graphs on a machine without a GPU: with torch's interface replaced by what it promises about memory pools."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_dist.model.kernels.graphs import CudaGraphs


class Allocator:
    """Torch's rule: a pool lives from its first recording until the last of its graphs is reset, and never again."""

    def __init__(self) -> None:
        self.handles = 0
        self.users: Counter[int] = Counter()
        self.pools_recorded: list[int] = []

    def new_handle(self) -> int:
        self.handles += 1
        return self.handles

    def new_graph(self) -> Any:
        graph = SimpleNamespace(pool=None, replay=lambda: None)

        def reset() -> None:
            self.users[graph.pool] -= 1

        graph.reset = reset
        return graph

    @contextmanager
    def record(self, graph: Any, pool: int, **_: Any) -> Iterator[None]:
        assert pool not in self.users or self.users[pool] > 0, "use_count > 0 INTERNAL ASSERT FAILED"
        self.users[pool] += 1
        self.pools_recorded.append(pool)
        graph.pool = pool
        yield


def test_graphs_share_a_pool_until_they_are_released_and_later_ones_have_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = Allocator()
    stream = SimpleNamespace(wait_stream=lambda _: None, device=torch.device("cuda", 0))
    replaced = {
        "Stream": lambda _: stream,
        "current_stream": lambda: stream,
        "stream": nullcontext,
        "synchronize": lambda: None,
        "graph_pool_handle": allocator.new_handle,
        "CUDAGraph": allocator.new_graph,
        "graph": allocator.record,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    graphs = CudaGraphs(torch.device("cuda"))
    for _ in range(2):
        graphs.record(lambda: None)
        graphs.record(lambda: None)
        graphs.release()
    first, second, third, fourth = allocator.pools_recorded
    assert first == second != third == fourth
