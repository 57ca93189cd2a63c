"""Each private interface that `distributed/compat.py` uses is there and does what we take it for."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lora_dist.distributed import compat


def test_mkldnn_bf16_supported_is_what_the_cpu_says() -> None:
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = file.read()
    if "avx512bw" in flags:  # the minimum for bf16 in oneDNN
        assert compat.cpu_has_bf16()


def test_reset_state_forgets_the_device_of_an_earlier_accelerator() -> None:
    Accelerator(cpu=True)
    assert AcceleratorState._shared_state
    compat.reset_accelerate()
    assert not AcceleratorState._shared_state


def test_compatible_ops_is_the_table_deepspeed_consults() -> None:
    import deepspeed.ops
    from deepspeed.ops import __compatible_ops__

    assert "deepspeed_shm_comm" in __compatible_ops__
    before = __compatible_ops__["deepspeed_shm_comm"]
    try:
        compat.compile_nothing()
        assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    finally:
        __compatible_ops__["deepspeed_shm_comm"] = before


def test_unset_hf_deepspeed_config_ends_partitioned_loading() -> None:
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    compat.load_weights_whole()
    assert not is_deepspeed_zero3_enabled()
    del config
