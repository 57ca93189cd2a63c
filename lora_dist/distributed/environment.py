"""What environment and accelerate config must not ask for, each refused in one sentence before a run begins."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_dist.distributed.compat import is_distributed
from lora_dist.distributed.launcher import forget_leftovers, uses_deepspeed
from lora_dist.errors import UserError

log = logging.getLogger(__name__)

UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
"""Variables that ask for a way to train which is not ours, and its name."""

OVERRIDDEN = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "--train.accumulation-steps",
    "ACCELERATE_GRADIENT_CLIPPING": "--train.max-grad-norm",
}
"""Variables that accelerate obeys, and the settings of ours that decide instead."""

OUR_SETTINGS = {
    "optimizer": ", AdamW is set by --train.learning-rate and --train.weight-decay",
    "scheduler": ", the schedule is set by --train.warmup-steps",
    "train_batch_size": ", the batch is set by --train.global-batch-size",
    "train_micro_batch_size_per_gpu": ", the batch is set by --train.global-batch-size",
    "gradient_accumulation_steps": ", accumulation is set by --train.accumulation-steps",
    "gradient_clipping": ", clipping is set by --train.max-grad-norm",
    "fp16": ", the precision is set by accelerate launch --mixed_precision",
    "bf16": ", the precision is set by accelerate launch --mixed_precision",
}
"""Keys of a DeepSpeed configuration file that settings of ours decide, and which."""

HARMLESS = {
    *("activation_checkpointing", "aio", "checkpoint", "comms_logger", "csv_monitor", "dump_state", "flops_profiler"),
    *("memory_breakdown", "steps_per_print", "tensorboard", "wall_clock_breakdown", "wandb"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization"),
}
"""Keys of the file that have no effect on the result; any other has to be off (null, false, "auto")."""

HARMLESS_IN_ZERO = {
    *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "elastic_checkpoint"),
    *("enable_sanity_checks", "ignore_unused_parameters", "load_from_fp32_weights", "log_trace_cache_warnings"),
    *("memory_efficient_linear", "offload_optimizer", "offload_param", "overlap_comm", "override_module_apply"),
    *("pipeline_loading_checkpoint", "reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "stage"),
    *("stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "stage3_model_persistence_threshold", "stage3_module_granularity_threshold"),
    *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params"),
    *("sub_group_size", "use_multi_rank_bucket_allreduce"),
}
"""The same below its zero_optimization: how the partitions are stored and sent."""


def check_environment() -> None:
    """Refuse what accelerate would do with the training that we do not, and ignore what a container may leave behind.

    Raises:
        UserError: for FSDP, Megatron, torch.compile through accelerate, a DeepSpeed configuration with settings of
            ours, or a process that is part of another training already.
    """
    if is_distributed():
        raise UserError("this process has an Accelerator or a process group: run lora-dist in a process of its own")
    forget_leftovers()
    for variable, name in UNSUPPORTED.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(f"the accelerate config asks for {name}, which is not supported: use ddp.yaml")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(f"dynamo_backend is {backend}: remove dynamo_config from the accelerate config")
    for variable, flag in OVERRIDDEN.items():
        value = os.environ.pop(variable, "auto")
        if value not in ("1", "auto", "none"):
            name = variable.removeprefix("ACCELERATE_").lower()
            log.warning("%s %s of the accelerate config has no effect: use %s", name, value, flag)
    if uses_deepspeed():
        _check_deepspeed()


def _check_deepspeed() -> None:
    if "LOCAL_RANK" not in os.environ:
        raise UserError("ACCELERATE_USE_DEEPSPEED is set without a launcher: unset it, or start with accelerate launch")
    # Accelerate refuses a file next to mixed_precision, which it would ignore; we do not.
    fields = os.environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")
    os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = ",".join(name for name in fields if name != "mixed_precision")
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file != "none":
        _check_deepspeed_file(file)
        return
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2", "3"):
        raise UserError(f"zero_stage is {stage}: give 1, 2 or 3 in the accelerate config, or use ddp.yaml")
    for part in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_DEVICE", "none")
        if device not in ("none", "cpu"):
            raise UserError(f"offload_{part}_device is {device}: give none or cpu in the accelerate config")


def _check_deepspeed_file(file: str) -> None:
    """Refuse a DeepSpeed configuration file with settings of ours, or any that may change the result."""
    try:
        config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        zero: dict[str, Any] = config["zero_optimization"]
        stage = zero["stage"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"deepspeed_config_file {file} cannot be read ({error!r}): give a JSON file of DeepSpeed's with the stage "
            "of zero_optimization"
        ) from None
    if stage not in (1, 2, 3):
        raise UserError(f"{file}: the stage of zero_optimization is {stage}: give 1, 2 or 3, or use ddp.yaml")
    _refuse_unknown(file, config, HARMLESS)
    _refuse_unknown(file, zero, HARMLESS_IN_ZERO)
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device", "none") not in ("none", "cpu"):
            raise UserError(f"{file}: {part} is {json.dumps(zero[part])}: give device none or cpu")


def _refuse_unknown(file: str, config: Mapping[str, Any], harmless: set[str]) -> None:
    for key, value in config.items():
        enabled = value.get("enabled", True) if isinstance(value, dict) else value
        neutral = not enabled or enabled == "auto" or (key == "gradient_accumulation_steps" and value == 1)
        if not neutral and key not in harmless:
            raise UserError(f"{file}: {key} is {json.dumps(value)}: remove it{OUR_SETTINGS.get(key, '')}")
