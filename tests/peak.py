"""A training that says what it took: run as a script, with the arguments of `lora-dist train`.

Prints, from rank 0, a line of JSON: the most bytes it had resident after its imports and in the end (VmHWM, which
unlike getrusage's figure starts anew with a program), and what each of its last update's collectives had in hand.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SENT = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
"""How often a ring sends (P - 1) / P of the whole tensor."""


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def count_traffic() -> list[int]:
    """Units of (P - 1) / P bytes sent, up to the end of each update."""
    from lora_dist.training.strategy import Replica

    sent, after_updates = [0], [0]

    def counted(function: Callable[..., Any], factor: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            tensors = [x for x in (*arguments, *named.values()) if isinstance(x, torch.Tensor)]
            sent[0] += factor * max(tensor.nbytes for tensor in tensors)
            return function(*arguments, **named)

        return call

    def step(replica: Replica, learning_rate: float) -> None:
        original(replica, learning_rate)
        after_updates.append(sent[0])

    for name, factor in SENT.items():
        setattr(torch.distributed, name, counted(getattr(torch.distributed, name), factor))
    original, Replica.step = Replica.step, step  # type: ignore[assignment,method-assign]
    return after_updates


if __name__ == "__main__":
    from lora_dist.cli.main import main

    imported, traffic = resident(), count_traffic()
    code = main(["train", *sys.argv[1:]])
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"imported": imported, "peak": resident(), "sent": traffic[-1] - traffic[-2]}))
    sys.exit(code)
