import os

import pytest
import torch

from lora_dist.distributed.device import choose_device, devices_for
from lora_dist.distributed.logs import set_up_logging
from lora_dist.distributed.world import world
from lora_dist.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: [(100, 800), (300, 800)][index])
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:0")  # restored afterwards


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "chosen"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_one_process_takes_the_gpu_with_most_free_memory_or_the_one_named(
    device: str, chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    assert not choose_device(device, launched=1)
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == chosen
    assert f"using {chosen} of 2 GPUs" in capsys.readouterr().err


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus_are_refused_unless_they_are_for_cpu_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not choose_device("auto", launched=2)
    assert not choose_device("auto", launched=4)  # two on each of two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes here for 2 cuda devices: give --num_processes 2, or"):
        choose_device("auto", launched=3)
    assert choose_device("cpu", launched=3)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_hidden_from_more_processes_than_there_are_gpus() -> None:
    assert devices_for(1) == devices_for(2) == {}
    assert devices_for(3) == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_world_computes_on_the_device_given_whatever_an_earlier_one_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    for _ in range(2):
        with world("cpu") as here:
            assert here.device == torch.device("cpu")
