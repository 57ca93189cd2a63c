"""What an environment or an accelerate config asks for is ours, has no effect, or is refused in one sentence."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from lora_dist.distributed.compat import reset_accelerate
from lora_dist.distributed.environment import HARMLESS, HARMLESS_IN_ZERO, check_environment
from lora_dist.distributed.launcher import launched_processes
from lora_dist.distributed.world import world
from lora_dist.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the environment after the test, from which `check_environment` removes variables."""
    before = dict(os.environ)
    yield
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "the accelerate config asks for FSDP"),
        ("ACCELERATE_USE_FSDP", "True", "asks for FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "asks for parallelism_config"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend is inductor: remove dynamo_config"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "ACCELERATE_USE_DEEPSPEED is set without a launcher: unset it"),
    ],
)
def test_another_way_to_train_is_refused_by_name(variable: str, value: str, message: str) -> None:
    os.environ[variable] = value
    with pytest.raises(UserError, match=message):
        check_environment()


@pytest.mark.parametrize(
    ("variable", "value", "warned"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1000", "use --train.accumulation-steps"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", ""),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.1", "use --train.max-grad-norm"),
        ("ACCELERATE_DYNAMO_BACKEND", "no", ""),
        ("ACCELERATE_USE_FSDP", "false", ""),
    ],
)
def test_what_settings_of_ours_decide_has_no_effect(
    variable: str, value: str, warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    os.environ[variable] = value
    check_environment()
    assert warned in caplog.text
    assert bool(caplog.text) == bool(warned)
    if variable.startswith("ACCELERATE_GRADIENT"):
        assert variable not in os.environ


@pytest.mark.parametrize(
    "leftovers",
    [
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "3", "LOCAL_RANK": "-1", "LOCAL_WORLD_SIZE": "abc"},
        {"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": ""},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "", "MASTER_PORT": ""},
        {"TORCHELASTIC_RESTART_COUNT": "2"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"ACCELERATE_DYNAMO_BACKEND": "", "ACCELERATE_MIXED_PRECISION": "", "ACCELERATE_FP8_BACKEND": "TE"},
        {"OMPI_COMM_WORLD_SIZE": "", "OMPI_COMM_WORLD_RANK": ""},
    ],
)
def test_variables_that_a_container_leaves_have_no_effect(leftovers: dict[str, str]) -> None:
    os.environ.update(leftovers)
    with world("cpu") as here:
        assert (here.rank, here.size, here.strategy, here.launch.restarted) == (0, 1, "single", False)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        *(
            ({name: "2"}, rf"2 copies of this command were started \({name}=2\)")
            for name in ("PMI_SIZE", "FLUX_JOB_SIZE")
        ),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "4 copies of this command"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2 and MASTER_ADDR is missing"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0: unset it"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two: unset it"),
        ({"PMI_SIZE": "x"}, "PMI_SIZE is x: unset it"),
    ],
)
def test_copies_that_are_not_connected_are_refused(variables: dict[str, str], message: str) -> None:
    os.environ.update(variables)
    with pytest.raises(UserError, match=message):
        launched_processes()


@pytest.mark.parametrize(
    "variables",
    [
        {"MASTER_PORT": ""},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": "x"},
        {"RANK": ""},
        {"RANK": "2"},
        {"RANK": "-1"},
    ],
)
def test_variables_of_a_launcher_that_are_not_complete_are_refused(variables: dict[str, str]) -> None:
    complete = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29999", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    os.environ.update({**complete, **variables})
    with pytest.raises(UserError, match="the launcher's variables are not complete"), world("cpu"):
        pass


def test_a_process_that_has_an_accelerator_is_refused_and_keeps_it() -> None:
    reset_accelerate()
    Accelerator(cpu=True, mixed_precision="bf16")
    try:
        with pytest.raises(UserError, match="run lora-dist in a process of its own"), world("cpu"):
            pass
        assert Accelerator().mixed_precision == "bf16"
    finally:
        reset_accelerate()


# DeepSpeed


def under_deepspeed(file: Path | str = "none", **fields: str) -> None:
    os.environ.update({"ACCELERATE_USE_DEEPSPEED": "true", "MASTER_ADDR": "localhost", "LOCAL_RANK": "0"})
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(file)
    os.environ.update({f"ACCELERATE_DEEPSPEED_{name.upper()}": value for name, value in fields.items()})


@pytest.mark.parametrize("stage", ["0", "4", "two"])
def test_a_stage_that_partitions_nothing_is_refused(stage: str) -> None:
    under_deepspeed(zero_stage=stage)
    with pytest.raises(UserError, match=f"zero_stage is {stage}: give 1, 2 or 3"):
        check_environment()


def test_offloading_to_disk_is_refused() -> None:
    under_deepspeed(zero_stage="3", offload_param_device="nvme")
    with pytest.raises(UserError, match="offload_param_device is nvme: give none or cpu"):
        check_environment()


def written(folder: Path, **keys: Any) -> Path:
    zero = {"stage": 2, **keys.pop("zero_optimization", {})}
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": zero, **keys}))
    return folder / "ds.json"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "remove it, AdamW is set by --train.learning-rate"),
        ({"scheduler": {"type": "WarmupLR"}}, "remove it, the schedule is set by --train.warmup-steps"),
        ({"fp16": {"enabled": True}}, "fp16 is .* remove it, the precision is set by accelerate launch"),
        ({"bf16": {"enabled": True}}, "bf16 is .* remove it, the precision"),
        ({"train_batch_size": 32}, "train_batch_size is 32: remove it, the batch is set by --train.global-batch-size"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4: remove it"),
        ({"gradient_accumulation_steps": 4}, "remove it, accumulation is set by --train.accumulation-steps"),
        ({"gradient_clipping": 1.0}, "remove it, clipping is set by --train.max-grad-norm"),
        ({"amp": {"enabled": True}}, "amp is .* remove it"),
        ({"communication_data_type": "bf16"}, "communication_data_type is"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types is"),
        ({"prescale_gradients": True}, "prescale_gradients is true"),
        ({"sparse_gradients": True}, "sparse_gradients is true"),
        ({"elasticity": {"enabled": True}}, "elasticity is"),
        ({"compression_training": {"weight_quantization": {}}}, "compression_training is"),
        ({"a_new_key": 1}, "a_new_key is 1: remove it"),
        ({"zero_optimization": {"stage": 0}}, "stage of zero_optimization is 0: give 1, 2 or 3"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload is true: remove it"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "zero_quantized_gradients is true"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "give device none or cpu"),
    ],
)
def test_a_deepspeed_file_with_what_would_change_the_training_is_refused_by_key(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    under_deepspeed(file := written(tmp_path, **keys))
    with pytest.raises(UserError, match=message) as error:
        check_environment()
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"zero_optimization": {}}', '{"zero_optimization": 2}'])
def test_a_deepspeed_file_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(content)
    under_deepspeed(tmp_path / "ds.json")
    with pytest.raises(UserError, match="cannot be read"):
        check_environment()
    under_deepspeed(tmp_path / "gone.json")
    with pytest.raises(UserError, match="cannot be read"):
        check_environment()


def test_a_deepspeed_file_that_only_stores_and_sends_in_another_way_is_accepted(tmp_path: Path) -> None:
    off = {"fp16": {"enabled": False}, "bf16": {"enabled": "auto"}, "train_batch_size": "auto", "optimizer": None}
    once = {"gradient_accumulation_steps": 1, "gradient_clipping": "auto"}
    harmless = {name: {"a": 1} for name in HARMLESS - {"zero_optimization"}}
    zero: dict[str, Any] = dict.fromkeys(HARMLESS_IN_ZERO - {"offload_optimizer", "offload_param"}, 1)
    zero |= {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": None}
    under_deepspeed(written(tmp_path, zero_optimization=zero, **off, **once, **harmless))
    check_environment()
