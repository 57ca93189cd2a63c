"""What this machine offers to a training that is planned for it."""

import psutil
import torch

from lora_dist.config import Precision
from lora_dist.distributed.device import compute_precision, device_memory
from lora_dist.planning.memory import Kind


def default_precision(kind: Kind) -> Precision:
    """Return the precision of the frozen weights on a device of this kind."""
    present = kind == "cpu" or torch.cuda.is_available()
    return compute_precision(torch.device(kind)) if present else "bf16"


def memory_here(kind: Kind, processes: int) -> int | None:
    """Return the bytes that this machine has for each process: one GPU's, or an equal part of its memory."""
    if kind == "cpu":
        return int(psutil.virtual_memory().total // processes)
    return device_memory(torch.device("cuda", 0)) if torch.cuda.is_available() else None
