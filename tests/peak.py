"""A training that reports its memory and communication: run as a script, with the arguments of `lora-dist train`.

Prints, from rank 0, a line of JSON: the peak of its resident memory after its imports and at its end, in bytes (VmHWM,
which starts at 0 in each program, unlike getrusage's figure), and the communication volume of its last step.
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
    """Peak of this process' resident memory so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def count_sent() -> list[int]:
    """Bytes sent up to the end of each step, in units of (P - 1) / P."""
    from lora_dist.training.strategy import TrainingStrategy

    sent, after_steps = [0], [0]

    def counted(function: Callable[..., Any], factor: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            tensors = [x for x in (*arguments, *named.values()) if isinstance(x, torch.Tensor)]
            sent[0] += factor * max(tensor.nbytes for tensor in tensors)
            return function(*arguments, **named)

        return call

    def step(strategy: TrainingStrategy, learning_rate: float) -> None:
        original(strategy, learning_rate)
        after_steps.append(sent[0])

    for name, factor in SENT.items():
        setattr(torch.distributed, name, counted(getattr(torch.distributed, name), factor))
    original, TrainingStrategy.step = TrainingStrategy.step, step  # type: ignore[assignment,method-assign]
    return after_steps


if __name__ == "__main__":
    from lora_dist.cli.main import main

    imported, sent = resident(), count_sent()
    code = main(["train", *sys.argv[1:]])
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"imported": imported, "peak": resident(), "sent": sent[-1] - sent[-2]}))
    sys.exit(code)
