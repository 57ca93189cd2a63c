"""Private interfaces of torch, accelerate, DeepSpeed and transformers that `distributed/` needs.

Each is used in one function, and tests/distributed/test_compat.py names each, so that an upgrade that takes one away
fails with its name.
"""

import torch
from accelerate.state import AcceleratorState


def cpu_has_bf16() -> bool:
    """Whether oneDNN multiplies in bf16 on this CPU itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def reset_accelerate() -> None:
    """Forget accelerate's process-wide state: another world may follow in this process, on another device."""
    AcceleratorState._reset_state(reset_partial_state=True)


def compile_nothing() -> None:
    """Keep DeepSpeed from compiling an operator at the first start on a machine that only inference on a CPU uses.

    A process killed meanwhile would leave a lock for whose end all later ones wait without a message.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def load_weights_whole() -> None:
    """Keep transformers from partitioning weights while it loads them under ZeRO-3: one rank may load alone here."""
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
