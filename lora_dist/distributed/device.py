"""Choose the device that this process computes on, and the precision of the frozen weights."""

import logging
import os
from pathlib import Path

import torch

from lora_dist.config import Precision
from lora_dist.distributed.compat import cpu_has_bf16
from lora_dist.distributed.launcher import local_processes
from lora_dist.errors import UserError

log = logging.getLogger(__name__)


def default_processes() -> int:
    """Return how many processes to launch by default: one per GPU, or two on CPU cores."""
    return torch.cuda.device_count() or 2


def devices_for(processes: int) -> dict[str, str]:
    """Return the environment variables for `processes` processes here, which hide the GPUs if there are too few."""
    return {} if torch.cuda.device_count() >= processes else {"CUDA_VISIBLE_DEVICES": ""}


def choose_device(device: str, launched: int) -> bool:
    """Choose the device before accelerate does, and return whether it is the CPU.

    Without a launcher, the default is the GPU with the most free memory.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a number only without a launcher.
        launched: processes that the launcher started, 1 without one.

    Raises:
        UserError: if the device is missing, there are fewer devices than processes, or a launched process gives a
            device number.
    """
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)  # set by an earlier world in this process
    here = torch.accelerator.current_accelerator(check_available=True)
    try:
        chosen = here if device == "auto" else torch.device(device)
    except RuntimeError:
        raise UserError(f"--device is {device}: give auto, cpu, cuda or cuda:N") from None
    if chosen is None or chosen.type == "cpu":
        return True
    available = torch.accelerator.device_count() if here is not None and here.type == chosen.type else 0
    if device != "auto" and (chosen.index or 0) >= available:
        raise UserError(f"--device is {device}: this machine has {available} {chosen.type} devices; try --device cpu")
    if local_processes() > available:
        raise UserError(
            f"the launcher started {local_processes()} processes here for {available} {chosen.type} devices: "
            f"give --num_processes {available}, or --device cpu for processes on CPU cores"
        )
    if launched > 1 and chosen.index is not None and device != "auto":
        raise UserError(f"--device is {device}: under a launcher each process has its own, leave out the number")
    if launched == 1 and chosen.type == "cuda":
        _use_gpu(chosen.index, available)
    return False


def _use_gpu(index: int | None, available: int) -> None:
    """Make accelerate use GPU `index` of the `available` ones, or by default the one with the most free memory."""
    if index is None:
        index = max(range(available), key=lambda k: torch.cuda.mem_get_info(k)[0])
    os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{index}"
    torch.cuda.set_device(index)
    if available > 1:
        log.info(
            "using cuda:%d of %d GPUs; for all of them start with accelerate launch --config_file "
            "accelerate_configs/ddp.yaml --num_processes %d -m lora_dist",
            index,
            available,
            available,
        )


def compute_precision(device: torch.device) -> Precision:
    """Return the launcher's precision (bf16 without one), or fp32 on a device that would only emulate bf16.

    Raises:
        UserError: if the accelerate config asks for another precision.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16")
    if asked not in ("bf16", "no"):
        raise UserError(f"mixed_precision is {asked}: give bf16, or no for fp32, in the accelerate config")
    return "bf16" if asked == "bf16" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies in bf16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_has_bf16()


def describe_device(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: tensors on a GPU, or all resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage, whose maximum includes that of the parent process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def device_memory(device: torch.device) -> int | None:
    """Return the bytes that a GPU has, free or not; None for a CPU, whose memory processes share."""
    return None if device.type == "cpu" else int(torch.cuda.get_device_properties(device).total_memory)
