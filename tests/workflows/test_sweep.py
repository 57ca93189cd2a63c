"""Many runs from one training: ordinary run directories, one report, and nothing made twice."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from launching import call_here
from made_runs import made_run

from lora_dist.config import ModelSettings, Settings, TrainSettings
from lora_dist.distributed.world import World
from lora_dist.errors import UserError
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir
from lora_dist.workflows.launch import Launch
from lora_dist.workflows.settings import SweepSettings
from lora_dist.workflows.sweep import _groups, _same_start, why_alone


def command(tiny_gpt2: Path, corpus: Path, out: Path, *more: object) -> list[object]:
    """The arguments of a sweep in seconds."""
    few = ("--train.max-steps", 5, "--train.warmup-steps", 2, "--train.checkpoint-steps", 2)
    short = ("--decode.limit", 3, "--decode.max-new-tokens", 8, "--decode.num-beams", 2)
    return ["sweep", "improved", "--model.name", tiny_gpt2, "--data.dir", corpus, *few, *short, *more, "--out", out]


def results(root: Path) -> dict[str, bytes]:
    names = ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "scores.json")
    return {str(file.relative_to(root)): file.read_bytes() for name in names for file in root.glob(f"*/{name}")}


def test_a_sweep_leaves_ordinary_runs_and_a_report_and_given_again_makes_only_what_is_missing(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    arguments = command(tiny_gpt2, corpus, out, "--seeds", 1, 2, 3, "--learning-rates", "1e-2")
    assert call_here(*arguments) == 0
    printed = capfd.readouterr()
    assert "3 runs, up to 3 at the same time in each of 1 process: 0 complete, 3 to do" in printed.err
    assert "±" in printed.out
    found = results(out)
    names = sorted({name.split("/")[0] for name in found})
    assert names == ["seed1-lr0.01", "seed2-lr0.01", "seed3-lr0.01"]
    assert len(found) == 3 * 3
    assert (out / "report.html").is_file()

    lost = RunDir(out / names[1])
    lost.scores.unlink()  # scored again
    killed = RunDir(out / names[2])
    for folder in (killed.adapter, killed.outputs.parent, killed.checkpoint(5)):
        shutil.rmtree(folder)
    assert call_here(*arguments) == 0
    assert "1 complete, 2 to do" in capfd.readouterr().err
    again = results(out)
    assert again.keys() == found.keys()
    assert [name for name in found if again[name] != found[name] and names[2] not in name] == []
    assert call_here(*command(tiny_gpt2, corpus, out, "--seeds", 1, "--learning-rates", "1e-2", "--lora.alpha", 8)) == 2
    assert "made with --lora.alpha 32.0, not 8.0" in capfd.readouterr().err


def test_every_combination_is_a_run_named_after_what_it_differs_in() -> None:
    factors = SweepSettings(seeds=(1, 2), learning_rates=(1e-4, 2e-4), alphas=(16.0,), inits=("original",), prefix="x-")
    runs = dict(factors.runs(IMPROVED))
    assert list(runs)[:2] == ["x-seed1-lr0.0001-alpha16.0-initoriginal", "x-seed1-lr0.0002-alpha16.0-initoriginal"]
    assert len(runs) == 4
    last = runs["x-seed2-lr0.0002-alpha16.0-initoriginal"]
    assert (last.train.seed, last.train.learning_rate, last.lora.alpha, last.lora.init) == (2, 2e-4, 16.0, "original")
    assert list(dict(SweepSettings(seeds=(7,)).runs(IMPROVED))) == ["seed7"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": ()}, "--seeds is empty: name at least one"),
        ({"seeds": (1, 1)}, "--seeds is 1 1: name each once"),
        ({"learning_rates": (0.1, 0.1)}, "--learning-rates is 0.1 0.1: name each once"),
        ({"together": 0}, "--together is 0: must be >= 1"),
    ],
)
def test_what_cannot_work_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SweepSettings(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runs", "ranks", "together", "expected"),
    [
        (3, 1, 8, [[[0, 1, 2]]]),
        (3, 2, 8, [[[0, 1]], [[2]]]),
        (5, 1, 2, [[[0, 1], [2, 3], [4]]]),
        (9, 2, 3, [[[0, 1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        (2, 4, 8, [[[0]], [[1]], [], []]),
        (3, 1, 1, [[[0], [1], [2]]]),
    ],
)
def test_runs_are_dealt_out_to_ranks_and_groups_of_similar_size(
    runs: int, ranks: int, together: int, expected: list[list[list[int]]]
) -> None:
    launches = [Launch(RunDir(Path(str(number))), IMPROVED) for number in range(runs)]
    here = cast(World, SimpleNamespace(size=ranks))
    found = [[[int(each.name) for each in group] for group in share] for share in _groups(launches, here, together)]
    assert found == expected


def test_runs_that_can_start_from_the_same_step_train_together_and_one_that_is_further_later(tmp_path: Path) -> None:
    settings = Settings(train=TrainSettings(checkpoint_steps=10))
    launches = [Launch(RunDir(tmp_path / name), settings) for name in ("behind", "ahead", "resumed alone")]
    for launch, steps in zip(launches, ((10, 20), (20, 30), (40, 50)), strict=True):
        for step in steps:
            launch.run.checkpoint(step).mkdir(parents=True)
            (launch.run.checkpoint(step) / "COMPLETE").touch()
    assert [each.name for each in _same_start(launches)] == ["behind", "ahead"]
    assert [each.name for each in _same_start(launches[2:])] == ["resumed alone"]
    fresh = Launch(RunDir(tmp_path / "fresh"), settings)
    assert [each.name for each in _same_start([fresh, *launches])] == ["fresh"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(), None),
        (Settings(train=TrainSettings(refs_per_mr=2)), "--train.refs-per-mr is above 1"),
        (Settings(train=TrainSettings(gradient_checkpointing=True)), "--train.gradient-checkpointing is on"),
        (Settings(model=ModelSettings(dropout=0.1)), "--model.dropout is not 0"),
        (Settings(model=ModelSettings(dropout=None)), "--model.dropout is not 0"),
    ],
)
def test_what_trains_one_after_the_other_has_a_reason(settings: Settings, reason: str | None) -> None:
    assert why_alone(settings) == reason


def test_the_folder_of_a_run_is_refused(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "run")
    assert call_here(*command(tiny_gpt2, corpus, run.root)) == 2
    assert "is the folder of a run" in capfd.readouterr().err
