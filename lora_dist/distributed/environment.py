"""What environment and accelerate config must not ask for, each refused in one sentence before a run begins."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from accelerate.state import is_initialized

from lora_dist.distributed.launcher import uses_deepspeed
from lora_dist.errors import UserError

log = logging.getLogger(__name__)

OUR_SETTINGS = {
    "optimizer": "AdamW is set by --train.learning-rate and --train.weight-decay",
    "scheduler": "the schedule is set by --train.warmup-steps",
    "train_batch_size": "the batch is set by --train.global-batch-size",
    "train_micro_batch_size_per_gpu": "the batch is set by --train.global-batch-size",
    "gradient_accumulation_steps": "accumulation is set by --train.accumulation-steps",
    "gradient_clipping": "clipping is set by --train.max-grad-norm",
    "fp16": "the precision is set by mixed_precision in the accelerate config",
    "bf16": "the precision is set by mixed_precision in the accelerate config",
}
"""Keys of a DeepSpeed configuration file that settings of ours decide, and which."""


def check_environment() -> None:
    """Refuse what accelerate would do with the training that we do not, and ignore what a container may leave behind.

    Raises:
        UserError: for FSDP, Megatron, torch.compile through accelerate, a DeepSpeed configuration with settings of
            ours, or an Accelerator that this process has already.
    """
    if is_initialized():
        raise UserError("this process has an Accelerator already: run lora-dist in a process of its own")
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(f"the accelerate config asks for {name}, which lora_dist does not support: use ddp.yaml")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(f"dynamo_backend is {backend}: remove dynamo_config from the accelerate config")
    if os.environ.get("PARALLELISM_CONFIG_TP_SIZE", "1") != "1":
        raise UserError(
            "the accelerate config asks for tensor parallelism, which lora_dist does not support: use ddp.yaml"
        )
    steps = os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        log.warning("gradient_accumulation_steps %s has no effect: use --train.accumulation-steps", steps)
    if uses_deepspeed():
        _check_deepspeed()
    if os.environ.get("MASTER_ADDR") is None:  # not started by a launcher, whatever else is set
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(variable, None)


def _check_deepspeed() -> None:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("1", "2", "3"):
            raise UserError(f"zero_stage is {stage}: give 1, 2 or 3 in the accelerate config, or use ddp.yaml")
        return
    try:
        config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        stage = config.get("zero_optimization", {}).get("stage")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"deepspeed_config_file {file} cannot be read ({error}): give a JSON file of DeepSpeed's"
        ) from None
    if stage not in (1, 2, 3):
        raise UserError(f"{file}: the stage of zero_optimization is {stage}: give 1, 2 or 3, or use ddp.yaml")
    for key, remedy in OUR_SETTINGS.items():
        value = config.get(key, "auto")
        enabled = value.get("enabled", True) if isinstance(value, dict) else value != "auto"
        neutral = value == 1 and key == "gradient_accumulation_steps"
        if enabled and not neutral:
            raise UserError(f"{file}: {key} is {json.dumps(value)}: remove it, {remedy}")
