"""A sweep on two ranks: its adapters are those of lone runs, and kills change no bit of its results."""

import random
import time
from pathlib import Path

import psutil
import pytest
from launching import TIMEOUT, adapter, begin, launcher, lora_dist, train_arguments, workers

pytestmark = [pytest.mark.launched, pytest.mark.slow]
SEEDS = (42, 43, 44)
DECODING = ("--decode.num-beams", 4, "--decode.batch-tokens", 1, "--decode.max-new-tokens", 24, "--decode.limit", 10)


@pytest.fixture(scope="module")
def training(tiny_gpt2: Path, corpus: Path) -> list[object]:
    """42 steps with dropout."""
    return [*train_arguments(tiny_gpt2, corpus), "--train.epochs", 14, "--lora.dropout", 0.2]


def sweep(training: list[object], out: Path) -> list[object]:
    return ["sweep", *training, "--seeds", *SEEDS, *DECODING, "--out", out]


@pytest.fixture(scope="module")
def undisturbed(training: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "sweep"
    lora_dist(*sweep(training, out), launcher=launcher("ddp.yaml", 2))
    return out


def test_the_adapters_of_a_sweep_are_those_of_lone_runs(
    training: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    for seed in SEEDS:
        lora_dist("train", *training, "--train.seed", seed, "--out", tmp_path / str(seed))
        ours, theirs = adapter(undisturbed / f"seed{seed}"), adapter(tmp_path / str(seed))
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert "±" in (undisturbed / "report.md").read_text()


def results(out: Path) -> dict[str, bytes]:
    names = ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "scores.json")
    return {f"{seed}/{name}": (out / f"seed{seed}" / name).read_bytes() for seed in SEEDS for name in names}


@pytest.mark.timeout(3600)
def test_sweeps_with_twenty_kills_at_random_moments_give_the_same_results(
    training: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    draw, kills, number = random.Random(0), 0, 0
    while kills < 20:
        out, finished = tmp_path / str(number), False
        number += 1
        while not finished:
            process = begin(*sweep(training, out), launcher=launcher("ddp.yaml", 2))
            moment = time.monotonic() + draw.uniform(6, 25)
            while process.poll() is None and time.monotonic() < moment:
                time.sleep(0.02)
            try:
                workers(process)[draw.randrange(2)].kill()
                kills += 1
            except (psutil.NoSuchProcess, IndexError):  # it has ended
                pass
            _, errors = process.communicate(timeout=TIMEOUT)
            finished = process.returncode == 0
            assert finished or "SIGKILL" in errors or "Signal 9" in errors or "exitcode" in errors, errors
        assert results(out) == results(undisturbed)
