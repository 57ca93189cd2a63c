"""What this machine's GPUs are, how they are connected, and how to start on all of them."""

import re
import subprocess
from collections.abc import Mapping

import torch

from lora_dist.distributed.device import has_bf16

SHORT_RUN = "--train.max-steps 100 --train.warmup-steps 10 --data.limit-dev 100 --decode.limit 20"
"""A run of E2E that CPU cores make in minutes."""

Links = Mapping[tuple[int, int], str]
"""Kind of connection by pair of GPUs in nvidia-smi's numbers, such as NV18 or PHB."""


def describe_gpus() -> str:
    """Return name, memory, free memory and bf16 of each GPU that torch sees."""
    lines = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bf16" if has_bf16(torch.device("cuda", index)) else "no bf16 in hardware, so fp32"
        name = torch.cuda.get_device_name(index)
        lines.append(f"cuda:{index} {name}, {total / 2**30:.0f} GiB of which {free / 2**30:.0f} free, {bf16}")
    return "; ".join(lines)


def describe_links() -> str:
    """Return how the GPUs are connected, as nvidia-smi says."""
    try:
        done = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: nvidia-smi topo -m failed ({type(error).__name__})"
    return summarize_links(parse_topology(done.stdout))


def parse_topology(text: str) -> Links:
    """Parse the matrix that `nvidia-smi topo -m` prints; its other columns (network cards, affinities) are skipped."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).split("\t") for line in text.splitlines()]
    header = next((cells for cells in lines if not cells[0].strip() and "GPU0" in map(str.strip, cells)), [])
    columns = {place: int(cell.strip()[3:]) for place, cell in enumerate(header) if re.fullmatch(r"\s*GPU\d+\s*", cell)}
    links = {}
    for cells in lines:
        if (row := re.fullmatch(r"GPU(\d+)", cells[0].strip())) is None:
            continue
        for place, column in columns.items():
            if int(row[1]) < column and place < len(cells):
                links[int(row[1]), column] = cells[place].strip()
    return links


def summarize_links(links: Links) -> str:
    """Describe the connections: the kind of all pairs, or the pairs of each kind."""
    by_kind: dict[str, list[str]] = {}
    for (one, other), kind in links.items():
        by_kind.setdefault(_name(kind), []).append(f"{one}-{other}")
    if not by_kind:
        return "one GPU"
    if len(by_kind) == 1:
        return f"{next(iter(by_kind))} between all GPUs"
    return "; ".join(f"{name} between {', '.join(pairs)}" for name, pairs in by_kind.items())


def _name(kind: str) -> str:
    """Return NVLink or PCIe with nvidia-smi's name for it; SYS, NODE, PHB, PXB and PIX are ways through PCIe."""
    return f"NVLink ({kind})" if kind.startswith("NV") else f"PCIe ({kind})"


def nccl_version() -> str:
    """Return the version of torch's NCCL."""
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def start_command() -> str:
    """Return the command that trains on all GPUs; without one, commands that take minutes on CPU cores."""
    count = torch.cuda.device_count()
    if count == 0:
        return f"lora-dist demo, then lora-dist run baseline {SHORT_RUN} --out runs/trial"
    if count == 1:
        return "lora-dist run baseline --out runs/small"
    launcher = f"accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes {count}"
    return f"{launcher} -m lora_dist run baseline --out runs/small"
