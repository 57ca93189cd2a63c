"""Many runs from one command: given again, it skips what is complete and resumes what failed or was killed."""

import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from launching import TIMEOUT, attempt, begin, call_here
from made_runs import made_run
from safetensors.torch import load_file

from lora_dist.config import DataSettings, ModelSettings, Settings, TrainSettings
from lora_dist.errors import UserError
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir
from lora_dist.workflows.estimate import Speed, duration, measure_speed
from lora_dist.workflows.launch import Launch
from lora_dist.workflows.reproduce import reproduce
from lora_dist.workflows.settings import ReproduceCommand


def command(tiny_gpt2: Path, corpus: Path, out: Path, *more: object) -> list[object]:
    """The arguments for two seeds of one configuration, each in one process and in seconds."""
    few = ("--train.max-steps", 6, "--train.warmup-steps", 2, "--train.checkpoint-steps", 1)
    short = ("--decode.limit", 3, "--decode.max-new-tokens", 8, "--decode.num-beams", 2)
    which = ("--models", tiny_gpt2, "--presets", "improved", "--seeds", 1, 2, "--processes", 1, "--together", 1)
    return ["reproduce", *which, "--data.dir", corpus, *few, *short, *more, "--out", out]


def results(root: Path) -> dict[str, bytes]:
    """The results of the runs and their report by file, without time and memory."""
    names = ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "decode/sentences.tsv", "scores.json")
    found = {str(f.relative_to(root)): f.read_bytes() for name in names for f in root.rglob(f"*seed*/{name}")}
    report = (root / "report.md").read_text()
    before, after = report.index("## Time and memory"), report.index("## Each run")
    results = report[:before] + report[after : report.index("## How it was made")]
    return {**found, "report.md": results.encode()}


# By default, sweep is tested, which makes, resumes and reports runs in the same way.
@pytest.mark.launched
@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_and_the_same_command_makes_it(
    tiny_gpt2: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    speeds: dict[str, Speed] = {}
    launched: list[Sequence[str]] = []

    def measure_once(data: DataSettings, runs: Sequence[Settings], _: object) -> dict[str, Speed]:
        speeds.update(speeds or measure_speed(data, runs, launch_here))
        return speeds

    def launch_here(arguments: Sequence[str], *_: object, **__: object) -> int:
        launched.append(arguments)
        return call_here(*arguments)

    monkeypatch.setattr("lora_dist.workflows.reproduce.measure_speed", measure_once)
    out = tmp_path / "all"
    first = out / f"{tiny_gpt2.name}-improved-seed1"
    made_run(out / "another")  # else the folder would not be one of runs
    first.mkdir()
    (first / "letter.txt").write_text("not a run")
    assert call_here(*command(tiny_gpt2, corpus, out)) == 1
    errors = capfd.readouterr().err
    assert "2 runs" in errors
    assert "2 to do" in errors
    assert re.search(r"seed1: 1 of 2, about .* left, until ", errors)
    assert f"{first} is not the folder of a run" in errors
    assert f"failed: {first.name}" in errors
    assert "| 2 | " in (out / "report.md").read_text()

    (first / "letter.txt").unlink()
    monkeypatch.setattr("lora_dist.workflows.reproduce._launch", launch_here)  # the first command started processes
    assert call_here(*command(tiny_gpt2, corpus, out)) == 0
    assert "1 complete, 1 to do" in capfd.readouterr().err
    found = results(out)
    assert len(found) == 2 * 4 + 1
    launched.clear()
    assert call_here(*command(tiny_gpt2, corpus, out)) == 0
    assert "2 complete, 0 to do" in capfd.readouterr().err
    assert results(out) == found
    assert launched == []
    assert call_here(*command(tiny_gpt2, corpus, out, "--train.learning-rate", "1e-3")) == 2
    assert "made with --train.learning-rate 0.0002, not 0.001" in capfd.readouterr().err


def test_a_run_decoded_with_other_settings_is_not_complete(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    assert Launch(run, IMPROVED).is_complete()
    assert not Launch(run, replace(IMPROVED, decode=replace(IMPROVED.decode, length_penalty=0.8))).is_complete()
    run.scores.unlink()
    assert not Launch(run, IMPROVED).is_complete()
    assert Launch(run, IMPROVED, source=run).is_complete()
    other = made_run(tmp_path / "trained again")
    assert not Launch(run, IMPROVED, source=other).is_complete()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": (1, 1)}, "--seeds is 1 1: name each once"),
        ({"models": ()}, "--models is empty"),
        ({"train": TrainSettings(seed=3)}, "--train.seed is 3: give --seeds, one for each run"),
        ({"processes": 0}, "--processes is 0: must be >= 1"),
        ({"presets": ("best",)}, "--presets is best: choose from baseline, improved"),
        ({"strategy": "zero4"}, "--strategy is zero4: choose from ddp, zero1, zero2, zero3, zero3_offload"),
    ],
)
def test_what_cannot_work_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReproduceCommand(**changed)  # type: ignore[arg-type]


def test_the_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the folder of a run"):
        reproduce(ReproduceCommand(out=made_run(tmp_path / "run").root))


def test_a_file_is_refused_as_the_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        reproduce(ReproduceCommand(out=tmp_path / "file"))


def test_models_whose_folders_would_have_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="end in the same name"):
        reproduce(ReproduceCommand(models=("a/gpt2", "b/gpt2"), out=tmp_path / "out"))


def test_the_expected_duration_of_a_run_is_that_of_its_parts() -> None:
    speed = Speed(10.0, 0.5, 7.0, {"train": 800, "dev": 60, "dev MRs": 8, "test": 20})
    settings = replace(IMPROVED, model=ModelSettings(name="x"), train=replace(IMPROVED.train, epochs=2))
    assert speed.seconds(settings, trains=False) == 7 + 20 * 0.5
    assert speed.seconds(settings, trains=True) == 7 + 10 + (2 * 800 + 2 * 60 / 3) / 10
    small = replace(settings, data=DataSettings(limit_dev=30))
    assert speed.seconds(small, trains=True) == 7 + 10 + (2 * 800 + 2 * 30 / 3) / 10
    few = replace(settings, decode=replace(settings.decode, limit=4))
    assert speed.seconds(few, trains=False) == 7 + 2
    scored = replace(settings, train=replace(settings.train, score_dev="epoch"))
    assert speed.seconds(scored, trains=True) == speed.seconds(settings, trains=True) + 2 * 8 * 0.5
    assert [duration(s) for s in (30, 300, 12000)] == ["30 s", "5 min", "3 h 20 min"]


@pytest.mark.launched
@pytest.mark.slow
def test_seeds_trained_together_as_by_default_have_the_adapters_of_their_own_launches(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    together = command(tiny_gpt2, corpus, tmp_path / "together")
    del together[together.index("--together") : together.index("--together") + 2]
    assert attempt(*together).returncode == 0
    assert attempt(*command(tiny_gpt2, corpus, tmp_path / "alone")).returncode == 0
    for seed in (1, 2):
        file = Path(f"{tiny_gpt2.name}-improved-seed{seed}", "adapter", "adapter_model.safetensors")
        ours, theirs = (load_file(tmp_path / name / file) for name in ("together", "alone"))
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    assert "±" in (tmp_path / "together" / "report.md").read_text()


@pytest.mark.launched
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_it_gives_the_same_report(tiny_gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    more = ("--compare-decoding",)
    start = time.monotonic()
    assert attempt(*command(tiny_gpt2, corpus, undisturbed, *more)).returncode == 0
    whole = time.monotonic() - start  # kills come at fractions of it, as machines differ
    draw, kills = random.Random(0), 0
    while True:
        process = begin(*command(tiny_gpt2, corpus, out, *more))
        deadline = time.monotonic() + draw.uniform(0.2, 0.4) * whole
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is not None:
            break
        below = psutil.Process(process.pid).children(recursive=True)
        number = signal.SIGTERM if kills % 3 == 2 else signal.SIGKILL
        os.kill(process.pid, number)
        kills += 1
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
        _, alive = psutil.wait_procs(below, timeout=40)
        assert not alive  # the processes that it started have ended as well
    process.communicate()
    assert process.returncode == 0
    assert kills >= 3
    assert results(out) == results(undisturbed)
    assert RunDir(out).report_html.is_file()
