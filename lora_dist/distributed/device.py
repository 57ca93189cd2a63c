"""Which device this process computes on, and in which precision it holds the frozen weights."""

import ctypes
import os
import sys
from pathlib import Path

import psutil
import torch

from lora_dist.config import Precision, UserError
from lora_dist.distributed.launcher import processes_on_this_machine


def default_processes() -> int:
    """How many processes to launch where nobody says: one a GPU, or two on CPU cores."""
    return torch.cuda.device_count() or 2


def devices_for(processes: int) -> dict[str, str]:
    """Environment for so many processes on this machine: without its GPUs, if there is not one for each."""
    return {} if torch.cuda.device_count() >= processes else {"CUDA_VISIBLE_DEVICES": ""}


def choose_device(device: str, launched: int) -> bool:
    """Pick the device before accelerate does; return whether it is the CPU.

    Without a launcher and without a wish, the GPU with the most free memory is taken.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a number only without a launcher.
        launched: processes that the launcher started, 1 without one.

    Raises:
        UserError: if there is no such device, not one for each process, or it is not for one of several to choose.
    """
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)  # what an earlier world in this process chose
    try:
        wanted = (
            torch.accelerator.current_accelerator(check_available=True) if device == "auto" else torch.device(device)
        )
    except RuntimeError:
        raise UserError(f"--device {device} is not a device: give auto, cpu, cuda or cuda:N") from None
    if wanted is None or wanted.type == "cpu":
        return True
    here = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if here is not None and here.type == wanted.type else 0
    if device != "auto" and (wanted.index or 0) >= count:
        raise UserError(
            f"--device {device} is not there: this machine offers {count} {wanted.type} devices; try --device cpu"
        )
    if processes_on_this_machine() > count:
        raise UserError(
            f"the launcher started {processes_on_this_machine()} processes here for {count} {wanted.type} devices: "
            f"give --num_processes {count}, or --device cpu for processes on CPU cores"
        )
    if launched > 1 and wanted.index is not None and device != "auto":
        raise UserError(
            f"--device {device}: under a launcher each process gets a device of its own, leave out the number"
        )
    if launched == 1 and wanted.type == "cuda":
        index = wanted.index if device != "auto" else None
        if index is None:
            index = max(range(count), key=lambda k: torch.cuda.mem_get_info(k)[0])
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{index}"
        torch.cuda.set_device(index)
        if count > 1:
            print(
                f"note: using cuda:{index} of {count} GPUs; for all of them start with accelerate launch "
                f"--config_file accelerate_configs/ddp.yaml --num_processes {count} -m lora_dist",
                file=sys.stderr,
            )
    return False


def compute_precision(device: torch.device) -> Precision:
    """The launcher's precision (bf16 without one), or fp32 on a device that would only emulate bf16.

    Raises:
        UserError: if the accelerate config asks for a precision that is not offered.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16")
    if asked == "no":
        return "fp32"
    if asked != "bf16":
        raise UserError(f"mixed_precision is {asked}: give bf16, or no for fp32, in the accelerate config")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    return "fp32"


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


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, where it is glibc's; for work on a CPU.

    By default it hands large blocks back to the system, which then clears their pages again at each step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes: its largest value
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def give_back_freed_memory() -> None:
    """Hand back to the system, once, what `keep_freed_memory` has kept; glibc's C library can."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
