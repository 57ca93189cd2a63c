"""What `doctor` says of GPUs, with stand-ins for torch's answers and recorded texts of nvidia-smi's."""

import subprocess
from typing import Any

import pytest
import torch

from lora_dist.workflows import doctor, gpus

NVLINK = """\
\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tNODE\t0-31\t0\t\tN/A
NIC0\tPIX\tNODE\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks
"""
BRIDGES = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV4\tSYS\tSYS\t0-15\t0
GPU1\tNV4\t X \tSYS\tSYS\t0-15\t0
GPU2\tSYS\tSYS\t X \tNV4\t16-31\t1
GPU3\tSYS\tSYS\tNV4\t X \t16-31\t1
"""
ALONE = "\t\x1b[4mGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\nGPU0\t X \t0-15\t0\t\tN/A\n"


def test_the_kinds_of_links_are_read_from_nvidia_smis_matrix() -> None:
    assert gpus.parse_topology(NVLINK) == {(0, 1): "NV18"}
    assert gpus.summarize_links(gpus.parse_topology(NVLINK)) == "NVLink (NV18) between all GPUs"
    pairs = "NVLink (NV4) between 0-1, 2-3; PCIe (SYS) between 0-2, 0-3, 1-2, 1-3"
    assert gpus.summarize_links(gpus.parse_topology(BRIDGES)) == pairs
    assert gpus.summarize_links(gpus.parse_topology(ALONE)) == "one GPU"
    assert gpus.summarize_links({(0, 1): "PHB"}) == "PCIe (PHB) between all GPUs"


def test_without_nvidia_smi_the_links_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpus.describe_links() == "unknown: nvidia-smi topo -m failed (FileNotFoundError)"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two connected A6000s, and NCCL between them."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        output = NVLINK if command[0] == "nvidia-smi" else "sum over 2 ranks: 3"
        return subprocess.CompletedProcess(command, 0, output, "")

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda _: (40 * 2**30, 48 * 2**30),
        "get_device_name": lambda _: "NVIDIA RTX A6000",
        "is_bf16_supported": lambda **_: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("two_gpus")
def test_doctor_describes_two_gpus_and_names_the_command_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.examine()
    lines = {line[4:16].strip(): line[17:] for line in capsys.readouterr().out.splitlines()}
    one = "NVIDIA RTX A6000, 48 GiB of which 40 free, bf16"
    assert lines["devices"] == f"cuda:0 {one}; cuda:1 {one}"
    assert lines["links"] == "NVLink (NV18) between all GPUs"
    assert lines["nccl"] == "2.27.3"
    assert lines["2 processes"] == "joined and all-reduced a number over NCCL"
    launcher = "accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 2"
    assert lines["start with"] == f"{launcher} -m lora_dist run baseline --out runs/small"


@pytest.mark.usefixtures("two_gpus")
def test_an_all_reduce_over_nccl_that_hangs_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setattr(subprocess, "run", hang)
    text, works = doctor._all_reduce()
    assert not works
    assert text.startswith("did not finish in 120 s; ")
    assert text.endswith("NCCL_P2P_DISABLE=1")
