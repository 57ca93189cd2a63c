"""A process killed at any moment costs only time: the resumed run gives the same result."""

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from launching import TIMEOUT, attempt, before_all_else, begin, launcher, lora_dist, train_arguments, workers

pytestmark = pytest.mark.launched
BEAMS = ("--decode.num-beams", 10, "--decode.batch-tokens", 1, "--decode.max-new-tokens", 48)
END_SECONDS = 60  # in which a launcher has to end once one of its processes was killed


def command(tiny_gpt2: Path, corpus: Path, out: Path) -> list[object]:
    """A run with dropout, over four epochs of three steps each, and a checkpoint after every step."""
    changed = ("--train.epochs", 4, "--train.checkpoint-steps", 1, "--lora.dropout", 0.2)
    return ["run", *train_arguments(tiny_gpt2, corpus), *changed, *BEAMS, "--out", out]


def result(out: Path) -> list[bytes]:
    names = ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "scores.json")
    return [(out / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def undisturbed(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The result of a run in two processes without a kill."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    lora_dist(*command(tiny_gpt2, corpus, out), launcher=launcher("ddp.yaml"))
    return result(out)


def kill_when(ready: Callable[[], bool], process: subprocess.Popen[str], rank: int) -> bool:
    """Kill one rank as soon as `ready`, and check that the launcher ends; False if the run was complete before."""
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with suppress(psutil.NoSuchProcess, IndexError):  # it may just have ended
        workers(process)[rank].kill()
    _, errors = process.communicate(timeout=END_SECONDS)
    if process.returncode == 0:
        return False
    assert "SIGKILL" in errors or "Signal 9" in errors or "exitcode" in errors, errors
    return True


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_with_a_rank_killed_in_training_and_in_decoding_gives_the_same_result(
    rank: int, tiny_gpt2: Path, corpus: Path, undisturbed: list[bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = command(tiny_gpt2, corpus, out)
    process = begin(*arguments, launcher=launcher("ddp.yaml"))
    assert kill_when(lambda: any((out / "checkpoints").glob("step-*5/COMPLETE")), process, rank)
    assert not (out / "adapter").exists()
    process = begin(*arguments, "--resume", launcher=launcher("ddp.yaml"))
    ledgers = out / "decode" / "ledger"
    assert kill_when(lambda: any(f.stat().st_size for f in ledgers.glob("rank-*.jsonl")), process, rank)
    assert not (out / "decode" / "outputs.jsonl").exists()
    kept = [line for file in ledgers.glob("rank-*.jsonl") for line in file.read_text().splitlines()]
    lora_dist(*arguments, "--resume", launcher=launcher("ddp.yaml"))
    assert result(out) == undisturbed
    ledger = "".join(file.read_text() for file in ledgers.glob("rank-*.jsonl"))
    assert all(ledger.count(line) == 1 for line in kept)  # no sentence is decoded twice


def passed(moment: float) -> bool:
    return time.monotonic() > moment


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_with_twenty_kills_at_random_moments_give_the_same_result(
    tiny_gpt2: Path, corpus: Path, undisturbed: list[bytes], tmp_path: Path
) -> None:
    draw, kills, number = random.Random(0), 0, 0
    while kills < 20:
        out = tmp_path / f"run-{number}"
        number += 1
        finished = False
        while not finished:
            arguments = command(tiny_gpt2, corpus, out)
            resume = ("--resume",) if out.exists() else ()
            moment = time.monotonic() + draw.uniform(6, 22)
            process = begin(*arguments, *resume, launcher=launcher("ddp.yaml"))
            killed = kill_when(partial(passed, moment), process, draw.randrange(2))
            kills += killed
            finished = not killed
        assert result(out) == undisturbed


def test_an_exception_on_one_rank_ends_all_ranks_with_its_message(
    tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    code = """
        import lora_dist.data.sampler
        def broken(*_): raise MemoryError('rank 1 has no memory left')
        lora_dist.data.sampler.micro_batches = broken
    """
    variables = before_all_else(tmp_path, code, rank=1)
    start = time.monotonic()
    out = tmp_path / "run"
    failed = attempt(*command(tiny_gpt2, corpus, out), launcher=launcher("ddp.yaml"), **variables)
    assert failed.returncode != 0
    assert "rank 1 has no memory left" in failed.stderr
    assert time.monotonic() - start < END_SECONDS
