"""Many runs from one command: what is complete stays, what failed or was killed is made by the same command again."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from launching import TIMEOUT, attempt, begin
from made_runs import made_run

from lora_dist.cli.commands import ReproduceCommand
from lora_dist.config import IMPROVED, ModelSettings, TrainSettings
from lora_dist.errors import UserError
from lora_dist.run_dir import RunDir
from lora_dist.workflows.estimate import Pace, duration
from lora_dist.workflows.reproduce import Job, reproduce


def words(tiny_gpt2: Path, corpus: Path, out: Path, *more: object) -> list[object]:
    """Two seeds of one configuration, each in one process and in seconds."""
    few = ("--train.max-steps", 6, "--train.warmup-steps", 2, "--train.checkpoint-steps", 1)
    short = ("--decode.limit", 3, "--decode.max-new-tokens", 8, "--decode.num-beams", 2)
    which = ("--models", tiny_gpt2, "--presets", "improved", "--seeds", 1, 2, "--processes", 1)
    return ["reproduce", *which, "--data.dir", corpus, *few, *short, *more, "--out", out]


def results(root: Path) -> dict[str, bytes]:
    """Whatever the report says of the runs, by file; not what they took."""
    names = ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "decode/sentences.tsv", "scores.json")
    found = {str(f.relative_to(root)): f.read_bytes() for name in names for f in root.rglob(f"*seed*/{name}")}
    report = (root / "report.md").read_text()
    before, after = report.index("## Time and memory"), report.index("## Each run")
    told = report[:before] + report[after : report.index("## How it was made")]
    return {**found, "report.md": told.encode()}


def test_a_run_that_fails_does_not_stop_the_others_and_is_made_by_the_same_command(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    first = out / f"{tiny_gpt2.name}-improved-seed1"
    first.mkdir(parents=True)
    (first / "letter.txt").write_text("not a run")
    failed = attempt(*words(tiny_gpt2, corpus, out))
    assert failed.returncode == 1
    assert "2 runs" in failed.stdout
    assert "2 to do" in failed.stdout
    assert "about" in failed.stdout
    assert "until" in failed.stdout
    assert f"{first} is not the folder of a run" in failed.stderr
    assert f"failed: {first.name}" in failed.stderr
    assert "| 2 | " in (out / "report.md").read_text()

    (first / "letter.txt").unlink()
    made = attempt(*words(tiny_gpt2, corpus, out))
    assert made.returncode == 0, made.stderr
    assert "1 complete, 1 to do" in made.stdout
    found = results(out)
    assert len(found) == 2 * 4 + 1
    start = time.monotonic()
    again = attempt(*words(tiny_gpt2, corpus, out))
    assert "2 complete, 0 to do" in again.stdout
    assert results(out) == found
    assert time.monotonic() - start < 30
    other = attempt(*words(tiny_gpt2, corpus, out, "--train.learning-rate", "1e-3"))
    assert other.returncode == 2
    assert "made with --train.learning-rate 0.0002, not 0.001" in other.stderr


def test_a_run_that_was_decoded_otherwise_is_not_complete(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    assert Job(run, IMPROVED).is_complete()
    assert not Job(run, replace(IMPROVED, decode=replace(IMPROVED.decode, length_penalty=0.8))).is_complete()
    run.scores.unlink()
    assert not Job(run, IMPROVED).is_complete()
    assert Job(run, IMPROVED, source=run).is_complete()
    other = made_run(tmp_path / "trained again")
    assert not Job(run, IMPROVED, source=other).is_complete()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": (1, 1)}, "--seeds is 1 1: name each once"),
        ({"models": ()}, "--models is empty"),
        ({"train": TrainSettings(seed=3)}, "--train.seed 3 is one for all runs"),
        ({"processes": 0}, "--processes is 0"),
    ],
)
def test_what_cannot_work_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ReproduceCommand(**changed)  # type: ignore[arg-type]


def test_a_run_is_no_folder_of_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the folder of a run"):
        reproduce(ReproduceCommand(out=made_run(tmp_path / "run").root))


def test_a_file_is_no_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder"):
        reproduce(ReproduceCommand(out=tmp_path / "file"))


def test_models_with_one_name_would_share_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="end in the same name"):
        reproduce(ReproduceCommand(models=("a/gpt2", "b/gpt2"), out=tmp_path / "out"))


def test_the_time_of_a_run_is_that_of_its_parts() -> None:
    pace = Pace(10.0, 0.5, 7.0, {"train": 800, "dev": 60, "test": 20})
    settings = replace(IMPROVED, model=ModelSettings(name="x"), train=replace(IMPROVED.train, epochs=2))
    assert pace.seconds(settings, trains=False) == 7 + 20 * 0.5
    assert pace.seconds(settings, trains=True) == 7 + 10 + (2 * 800 + 2 * 60 / 3) / 10
    few = replace(settings, decode=replace(settings.decode, limit=4))
    assert pace.seconds(few, trains=False) == 7 + 2
    assert [duration(s) for s in (30, 300, 12000)] == ["30 s", "5 min", "3 h 20 min"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_it_ends_in_the_same_report(tiny_gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    more = ("--compare-decoding",)
    start = time.monotonic()
    assert attempt(*words(tiny_gpt2, corpus, undisturbed, *more)).returncode == 0
    whole = time.monotonic() - start  # what a machine gets done in so many seconds differs
    draw, kills = random.Random(0), 0
    while True:
        process = begin(*words(tiny_gpt2, corpus, out, *more))
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
        assert not alive  # what it had started has ended as well
    process.communicate()
    assert process.returncode == 0
    assert kills >= 3
    assert results(out) == results(undisturbed)
    assert RunDir(out).report_html.is_file()
