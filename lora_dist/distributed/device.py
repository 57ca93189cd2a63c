"""Which device this process computes on, and in which precision it holds the frozen weights."""

import logging
import os
from pathlib import Path

import psutil
import torch

from lora_dist.config import Precision
from lora_dist.distributed.compat import cpu_has_bf16
from lora_dist.distributed.launcher import local_processes
from lora_dist.errors import UserError

log = logging.getLogger(__name__)


def default_processes() -> int:
    """How many processes to launch by default: one per GPU, or two on CPU cores."""
    return torch.cuda.device_count() or 2


def devices_for(processes: int) -> dict[str, str]:
    """Environment for `processes` processes on this machine: without its GPUs if there is not one for each."""
    return {} if torch.cuda.device_count() >= processes else {"CUDA_VISIBLE_DEVICES": ""}


def choose_device(device: str, launched: int) -> bool:
    """Pick the device before accelerate does; return whether it is the CPU.

    Without a launcher, and unless one is named, the GPU with the most free memory is taken.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a number only without a launcher.
        launched: processes that the launcher started, 1 without one.

    Raises:
        UserError: if there is no such device, not one for each process, or a launched process names one of several.
    """
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)  # what an earlier world in this process chose
    here = torch.accelerator.current_accelerator(check_available=True)
    try:
        chosen = here if device == "auto" else torch.device(device)
    except RuntimeError:
        raise UserError(f"--device is {device}: give auto, cpu, cuda or cuda:N") from None
    if chosen is None or chosen.type == "cpu":
        return True
    count = torch.accelerator.device_count() if here is not None and here.type == chosen.type else 0
    if device != "auto" and (chosen.index or 0) >= count:
        raise UserError(f"--device is {device}: this machine has {count} {chosen.type} devices; try --device cpu")
    if local_processes() > count:
        raise UserError(
            f"the launcher started {local_processes()} processes here for {count} {chosen.type} devices: "
            f"give --num_processes {count}, or --device cpu for processes on CPU cores"
        )
    if launched > 1 and chosen.index is not None and device != "auto":
        raise UserError(f"--device is {device}: under a launcher each process has its own, leave out the number")
    if launched == 1 and chosen.type == "cuda":
        _take_gpu(chosen.index, count)
    return False


def _take_gpu(index: int | None, count: int) -> None:
    """Have accelerate use GPU `index` of `count`, or the one with the most free memory."""
    if index is None:
        index = max(range(count), key=lambda k: torch.cuda.mem_get_info(k)[0])
    os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{index}"
    torch.cuda.set_device(index)
    if count > 1:
        log.info(
            "using cuda:%d of %d GPUs; for all of them start with accelerate launch --config_file "
            "accelerate_configs/ddp.yaml --num_processes %d -m lora_dist",
            index,
            count,
            count,
        )


def compute_precision(device: torch.device) -> Precision:
    """The launcher's precision (bf16 without one), or fp32 on a device that would only emulate bf16.

    Raises:
        UserError: if the accelerate config asks for a precision that is not offered.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16")
    if asked not in ("bf16", "no"):
        raise UserError(f"mixed_precision is {asked}: give bf16, or no for fp32, in the accelerate config")
    return "bf16" if asked == "bf16" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_has_bf16()


def describe_device(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free where `device` computes."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held so far: a GPU's tensors, or all that it had resident in a CPU's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its maximum begins with that of the process which started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
