"""Private interfaces of torch, accelerate, DeepSpeed and transformers that `distributed/` needs.

Each is used in one function and tested in tests/distributed/test_compat.py, so that an upgrade which removes one fails
with its name.
"""

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState


def cpu_has_bf16() -> bool:
    """Return whether oneDNN multiplies in bf16 on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_distributed() -> bool:
    """Return whether this process has an Accelerator (or its state) or a process group already."""
    return bool(PartialState._shared_state) or dist.is_initialized()


def reset_accelerate() -> None:
    """Clear accelerate's process-wide state, so that another world can follow in this process on another device."""
    AcceleratorState._reset_state(reset_partial_state=True)


def compile_nothing() -> None:
    """Keep DeepSpeed from compiling, at its first start on a machine, an operator for inference on CPUs.

    A process killed during the compilation would leave a lock that all later ones wait for, without a message.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def load_weights_whole() -> None:
    """Keep transformers from partitioning weights as it loads them under ZeRO-3, as a single rank may load here."""
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
