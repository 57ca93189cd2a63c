"""Checkpoints on the disk: which are complete, what a kill leaves, and what is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from lora_dist.config import LoraSettings
from lora_dist.distributed.world import World, world
from lora_dist.errors import UserError
from lora_dist.files import new_folder, write_json, write_text
from lora_dist.model.base import BaseIdentity
from lora_dist.run_dir import COMPLETE, RunDir
from lora_dist.training import checkpoint
from lora_dist.training.checkpoint import Checkpoints
from lora_dist.training.strategy import TrainingStrategy

NAME = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
IDENTITY: dict[str, object] = {"base model": "abc", "--lora.rank": 4, "--train.select": "last"}


class State:
    """What a checkpoint takes of a `TrainingStrategy`."""

    def adapter(self, _: int) -> dict[str, Tensor]:
        return {NAME: torch.arange(8.0).view(2, 4)}

    def moments(self, _: int) -> dict[str, Tensor]:
        return {f"{NAME}.exp_avg": torch.full((2, 4), 0.1), f"{NAME}.exp_avg_sq": torch.full((2, 4), 1e-9)}


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world("cpu") as one:
        yield one


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def power_cut(*_: object) -> None:
    raise OSError("power cut")


def checkpoints(folder: Path, keep: int = 99, identity: dict[str, object] = IDENTITY) -> Checkpoints:
    base = BaseIdentity("gpt2", "fingerprint", torch.zeros(4))
    return Checkpoints(RunDir(folder), identity, LoraSettings(rank=2), base, keep)


def save(found: Checkpoints, steps: int, here: World) -> None:
    found.save(steps, cast(TrainingStrategy, State()), here)
    found.delete_old(here)


def write_checkpoint(run: RunDir, steps: int) -> None:
    with new_folder(run.checkpoint(steps), marker=COMPLETE) as folder:
        (folder / "state.json").write_text("{}")


def test_the_newest_checkpoint_is_what_was_saved_to_the_bit(tmp_path: Path, here: World) -> None:
    found = checkpoints(tmp_path)
    assert found.newest() is None
    for steps in (500, 1000):
        save(found, steps, here)
    newest = found.newest()
    assert newest is not None
    assert newest.steps == 1000
    for loaded, saved in ((newest.adapter, State().adapter(0)), (newest.moments, State().moments(0))):
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_the_marker_comes_last_and_without_it_a_checkpoint_does_not_count(
    tmp_path: Path, here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, run, replace = checkpoints(tmp_path), RunDir(tmp_path), os.replace
    made: list[str] = []

    def spy(source: str, target: Path) -> None:
        if Path(target).name == COMPLETE and run.checkpoint(2).exists():
            raise OSError("power cut")
        replace(source, target)
        made.append(Path(target).name)

    monkeypatch.setattr(os, "replace", spy)
    save(found, 1, here)
    assert made[-2:] == ["step-000001", COMPLETE]
    assert COMPLETE not in made[:-1]
    with pytest.raises(OSError, match="power cut"):
        save(found, 2, here)
    assert (run.checkpoint(2) / "state.json").is_file()
    assert found.complete() == [1]


def test_complete_checkpoints_are_sorted_by_number_without_those_half_written_or_half_deleted(tmp_path: Path) -> None:
    found, run = checkpoints(tmp_path), RunDir(tmp_path)
    assert found.complete() == []
    for steps in (1_000_000, 500, 999_999):
        write_checkpoint(run, steps)
    write_text(run.checkpoint(700) / "state.json", "{}")
    write_text(run.checkpoints / ".step-000800.tmp" / COMPLETE, "")
    assert found.complete() == [500, 999_999, 1_000_000]


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [20, 30]), (5, [10, 20, 30])])
def test_saving_deletes_the_oldest_complete_checkpoints(
    tmp_path: Path, here: World, keep: int, left: list[int]
) -> None:
    found, run = checkpoints(tmp_path, keep), RunDir(tmp_path)
    for steps in (10, 20):
        write_checkpoint(run, steps)
    save(found, 30, here)
    assert found.complete() == left
    assert names(run.checkpoints) >= {f"step-{steps:06d}/state.json" for steps in left}
    assert len(list(run.checkpoints.iterdir())) == len(left)


def test_a_deletion_cut_short_leaves_no_checkpoint_that_looks_complete(
    tmp_path: Path, here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checkpoints(tmp_path, keep=1)
    save(found, 1, here)
    monkeypatch.setattr(checkpoint, "remove", power_cut)
    with pytest.raises(OSError, match="power cut"):
        save(found, 2, here)
    assert RunDir(tmp_path).checkpoint(1).is_dir()
    assert found.complete() == [2]


def test_a_checkpoint_that_is_complete_is_not_written_again(tmp_path: Path, here: World) -> None:
    found, file = checkpoints(tmp_path), RunDir(tmp_path).checkpoint(1) / "state.json"
    save(found, 1, here)
    before = file.stat().st_ino
    save(found, 1, here)
    assert file.stat().st_ino == before


def test_a_checkpoint_of_another_training_is_refused_with_the_difference(tmp_path: Path, here: World) -> None:
    save(checkpoints(tmp_path), 1, here)
    other = checkpoints(tmp_path, identity={**IDENTITY, "--lora.rank": 8})
    message = rf"^{tmp_path} was trained with other settings: --lora\.rank was 4, is 8; keep the old, or name another"
    with pytest.raises(UserError, match=message):
        other.newest()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("state.json", "the checkpoint {folder} is damaged, delete it to resume from an older one"),
        ("optimizer.safetensors", "the checkpoint {folder} is damaged"),
        ("adapter_model.safetensors", "{folder}/adapter_model.safetensors cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(name: str, message: str, tmp_path: Path, here: World) -> None:
    found, folder = checkpoints(tmp_path), RunDir(tmp_path).checkpoint(1)
    save(found, 1, here)
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(UserError) as error:
        found.newest()
    assert str(error.value).startswith(message.format(folder=folder))


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path, here: World) -> None:
    found = checkpoints(tmp_path)
    save(found, 7, here)
    file = RunDir(tmp_path).checkpoint(7) / "state.json"
    assert json.loads(file.read_text()) == {"updates": 7, "recipe": IDENTITY}
    without_select = {name: value for name, value in IDENTITY.items() if name != "--train.select"}
    write_json(file, {"steps": 7, "identity": without_select})
    newest = found.newest()
    assert newest is not None
    assert newest.steps == 7


def test_a_setting_that_a_checkpoint_does_not_record_had_its_default(tmp_path: Path, here: World) -> None:
    save(checkpoints(tmp_path), 3, here)
    newer = {
        "--lora.dora": False,
        "--data.limit-dev": None,
        "--train.lora-plus-ratio": 1.0,
        "--data.linearization": "csv",
    }
    assert checkpoints(tmp_path, identity={**IDENTITY, **newer}).newest() is not None
    with pytest.raises(UserError, match=r"other settings: --lora\.dora was False, is True; keep"):
        checkpoints(tmp_path, identity={**IDENTITY, **newer, "--lora.dora": True}).newest()
