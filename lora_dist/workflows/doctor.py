"""Check what this machine has, and whether two processes on it find each other."""

import os
import subprocess
import sys
from importlib import metadata

import torch

from lora_dist.config_io import versions
from lora_dist.distributed.collectives import sum_over_ranks
from lora_dist.distributed.device import devices_for, has_bf16
from lora_dist.distributed.launcher import failure_reason, launch_command
from lora_dist.distributed.world import world
from lora_dist.errors import UserError
from lora_dist.metrics.java import find_java
from lora_dist.workflows.gpus import describe_gpus, describe_links, nccl_version, start_command

ALL_REDUCE_TIMEOUT = 120
"""Seconds that two processes may take to start and all-reduce a value."""

P2P = "; where GPUs cannot reach each other directly, as some RTX A6000, NCCL needs NCCL_P2P_DISABLE=1"
"""What to try if NCCL hangs or fails."""


def examine() -> int:
    """Print one line per check; return 0 if a run would work here, 1 if something that it needs is missing."""
    findings = [("versions", ", ".join(f"{name} {version}" for name, version in versions().items()), True)]
    findings.append(("devices", _devices(), True))
    findings.append(("java", *_java()))
    findings.append(("deepspeed", *_deepspeed()))
    if torch.cuda.is_available():
        findings += [("links", describe_links(), True), ("nccl", nccl_version(), True)]
    findings += [("2 processes", *_all_reduce()), ("start with", start_command(), True)]
    for name, text, works in findings:
        print(f"{'ok ' if works else 'NO '} {name:<12} {text}")
    return 0 if all(works for _, _, works in findings) else 1


def _devices() -> str:
    if torch.cuda.is_available():
        return describe_gpus()
    bf16 = "bf16 in hardware" if has_bf16(torch.device("cpu")) else "no bf16 in hardware, so fp32"
    return f"no GPU; CPU with {torch.get_num_threads()} threads, {bf16}"


def _java() -> tuple[str, bool]:
    try:
        return str(find_java()), True
    except UserError as error:
        return str(error), False


def _deepspeed() -> tuple[str, bool]:
    try:
        return metadata.version("deepspeed"), True
    except metadata.PackageNotFoundError:
        return "not installed (Linux only): the zero*.yaml configs will not start", False


def _all_reduce() -> tuple[str, bool]:
    """Check that two processes all-reduce 1 and 2 to 3, over NCCL where there are two GPUs."""
    on_gpus = not devices_for(2) and torch.cuda.is_available()
    command = [*launch_command(2), "-m", "lora_dist.workflows.doctor"]
    environment = {**os.environ, **devices_for(2)}
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ALL_REDUCE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not finish in {ALL_REDUCE_TIMEOUT} s{P2P if on_gpus else ''}", False
    if result.returncode == 0 and "sum over 2 ranks: 3" in result.stdout:
        return f"joined and all-reduced a number{' over NCCL' if on_gpus else ''}", True
    return f"failed: {failure_reason(result)}{P2P if on_gpus else ''}", False


if __name__ == "__main__":
    with world() as here:
        total = sum_over_ranks(here, torch.tensor([here.rank + 1], device=here.device)).item()
        if here.is_main:
            print(f"sum over {here.size} ranks: {total:.0f}")
    sys.exit(0)
