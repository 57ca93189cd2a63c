"""What an adapter_config.json says, without the adapter: PEFT's own fields and those of PEFT versions to come."""

import dataclasses
import json
from pathlib import Path

import peft
import pytest

from lora_dist.errors import UserError
from lora_dist.model.adapter_config import ANY_VALUE, read_adapter_settings

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["c_attn"]}


def write(folder: Path, **fields: object) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **fields}))
    return folder


def test_the_fields_that_are_harmless_at_any_value_are_pefts() -> None:
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} >= ANY_VALUE


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "a_new_one", ["pissa"], 2]
)
def test_an_initialisation_that_changes_the_base_or_is_unknown_is_refused(init: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has init_lora_weights .*, which is not supported"):
        read_adapter_settings(write(tmp_path, init_lora_weights=init))


def test_the_layers_of_a_pattern_are_those_of_the_saved_matrices_or_else_the_pattern(tmp_path: Path) -> None:
    folder, pattern = write(tmp_path, target_modules=r".*c_attn"), (r".*c_attn",)
    matrices = [
        f"base_model.model.transformer.h.{n}.attn.c_attn.lora_{kind}.weight" for n in (0, 1) for kind in ("A", "B")
    ]
    found = read_adapter_settings(folder, matrices).targets
    assert found == ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn")
    assert read_adapter_settings(folder).targets == pattern
