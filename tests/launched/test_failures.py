"""What goes wrong around a run: signals, a full disk, kills, a rank that hangs, one that fails and is restarted.

It costs only time: the resumed run gives the same result.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import (
    TIMEOUT,
    adapter,
    attempt,
    before_all_else,
    begin,
    complete_checkpoints,
    finish,
    launcher,
    lora_dist,
    metrics,
    train_arguments,
    workers,
)

from lora_dist.cli.main import main
from lora_dist.decoding import decoder
from lora_dist.decoding.beam_search import beam_search
from lora_dist.errors import INTERRUPTED
from lora_dist.run_dir import RunDir
from lora_dist.training import trainer
from lora_dist.training.step import OptimizerStep

pytestmark = pytest.mark.launched
GRACE = 30  # seconds that a scheduler gives between its signal and SIGKILL
END_SECONDS = 60  # in which a launcher has to end once one of its processes was killed


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, corpus: Path) -> list[str]:
    """A training with dropout of 6 steps, two epochs of 3, and a checkpoint in the middle of each."""
    changed = ("--lora.dropout", 0.2, "--train.keep-checkpoints", 9, "--train.checkpoint-steps", 2)
    return [str(part) for part in ("train", *train_arguments(tiny_gpt2, corpus), *changed)]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    assert main([*arguments, "--out", str(run.root)]) == 0
    return run


def same(run: RunDir, other: RunDir) -> bool:
    weights = [(r.adapter / "adapter_model.safetensors").read_bytes() for r in (run, other)]
    logs = [[metrics(r.root, key) for key in ("step", "loss", "lr", "samples", "dev_loss")] for r in (run, other)]
    return weights[0] == weights[1] and logs[0] == logs[1]


PLACES: dict[str, tuple[object, str]] = {"step": (OptimizerStep, "__call__"), "dev set": (trainer, "dev_losses")}
"""Owner and name of the functions that the tests interrupt."""


def call_at(monkeypatch: pytest.MonkeyPatch, place: str, number: int, action: Callable[[], None]) -> None:
    """Call `action` at the start of call `number` (from 1) of the function in `PLACES`."""
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), []

    def called(*arguments: object) -> object:
        calls.append(name)
        if len(calls) == number:
            action()
        return function(*arguments)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize(
    ("place", "call", "step", "number"),
    [
        *(("step", 2, 2, number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)),
        *((*at, signal.SIGTERM) for at in (("step", 5, 5), ("dev set", 1, 3), ("dev set", 2, 6))),
    ],
)
def test_a_signal_ends_a_training_after_its_step_and_resuming_gives_the_same_bits(
    number: signal.Signals,
    place: str,
    call: int,
    step: int,
    arguments: list[str],
    finished: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDir(tmp_path / "run")
    if signal.getsignal(number) is signal.SIG_IGN:  # as SIGHUP is where the tests run under nohup
        pytest.skip(f"{number.name} is ignored here")
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        call_at(patch, place, call, lambda: os.kill(os.getpid(), number))
        assert main([*arguments, "--out", str(run.root)]) == INTERRUPTED
    assert signal.getsignal(number) == handler
    assert f"{number.name} ended the training after step {step} of 6" in capsys.readouterr().err
    assert complete_checkpoints(run)[-1] == step
    assert not run.adapter.exists()
    assert main([*arguments, "--resume", "--out", str(run.root)]) == 0
    assert same(run, finished)


def test_an_ignored_signal_stays_ignored(
    arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        call_at(monkeypatch, "step", 2, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert main([*arguments, "--out", str(run.root)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert same(run, finished)


def test_a_signal_ends_a_decoding_after_its_chunk_and_no_chunk_is_decoded_twice(
    finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    few = ("--decode.batch-tokens", "1", "--decode.max-new-tokens", "8", "--decode.limit", "6", "--device", "cpu")
    chunks: list[int] = []

    def counted(*arguments: Any) -> Any:
        chunks.append(1)
        if len(chunks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return beam_search(*arguments)

    monkeypatch.setattr(decoder, "beam_search", counted)
    assert main(["decode", str(run.root), *few]) == INTERRUPTED
    assert "SIGTERM ended the decoding" in capsys.readouterr().err
    assert len(chunks) == 3
    assert len(run.ledger(0).read_text().splitlines()) == 3
    assert not run.outputs.exists()
    assert main(["decode", str(run.root), *few]) == 0
    assert len(chunks) == 6
    assert len(run.outputs.read_text().splitlines()) == 6


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 500 KiB, with room for one or two checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_one_sentence_and_loses_no_complete_checkpoint(
    small_disk: Path, arguments: list[str], finished: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(small_disk / "run")
    assert main([*arguments, "--out", str(run.root)]) == 1
    assert "the disk is full" in capsys.readouterr().err
    kept = complete_checkpoints(run)
    assert 0 < len(kept) < 3
    assert not run.adapter.exists()
    for step in kept:
        for file in finished.checkpoint(step).iterdir():
            assert (run.checkpoint(step) / file.name).read_bytes() == file.read_bytes()
    assert not list(run.root.rglob(".part.*"))  # nothing half-written takes up space
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main([*arguments, "--resume", "--out", str(run.root)]) == 0
    assert same(run, finished)


# Several processes


@pytest.fixture(scope="module")
def long_training(tiny_gpt2: Path, corpus: Path) -> list[object]:
    """42 steps with dropout, of which only the last writes a checkpoint by itself."""
    changed = ("--train.epochs", 14, "--lora.dropout", 0.2, "--train.checkpoint-steps", 1000)
    return [*train_arguments(tiny_gpt2, corpus), *changed]


DECODING = ("--decode.num-beams", 10, "--decode.batch-tokens", 1, "--decode.max-new-tokens", 48, "--decode.limit", 30)
"""Settings with which each rank decodes 15 chunks of one sentence."""


@pytest.fixture(scope="module")
def undisturbed(long_training: list[object], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run of two processes without a failure: training, decoding and report."""
    run = RunDir(tmp_path_factory.mktemp("undisturbed") / "run")
    lora_dist("run", *long_training, *DECODING, "--out", run.root, launcher=launcher("ddp.yaml"))
    return run


def assert_same_adapter(run: RunDir, other: RunDir, *, exactly: bool) -> None:
    ours, theirs = adapter(run.root), adapter(other.root)
    assert (ours - theirs).norm() <= (0 if exactly else 1e-5) * theirs.norm()


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_trained(run: RunDir, steps: int) -> bool:
    return run.metrics.exists() and len(run.metrics.read_text().splitlines()) > steps


@pytest.mark.parametrize(
    ("config", "to"),
    [
        pytest.param("ddp", "launcher", marks=pytest.mark.slow),
        ("ddp", "rank 1"),
        pytest.param("zero2", "launcher", marks=pytest.mark.slow),
        pytest.param("zero3", "rank 1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_launcher_or_to_one_rank_ends_all_ranks_with_one_checkpoint(
    config: str, to: str, long_training: list[object], undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    passed_on = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR1"}  # as launch/setup.sh sets it
    process = begin("train", *long_training, "--out", run.root, launcher=launcher(f"{config}.yaml"), **passed_on)
    wait_for(lambda: has_trained(run, 4), process)
    if to == "launcher":
        process.send_signal(signal.SIGUSR1)
    else:
        workers(process)[1].send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=GRACE)
    assert process.returncode != 0
    (step,) = complete_checkpoints(run)
    assert 0 < step < 42
    assert f"ended the training after step {step} of 42" in errors
    lora_dist("train", *long_training, "--resume", "--out", run.root, launcher=launcher(f"{config}.yaml"))
    assert_same_adapter(run, undisturbed, exactly=config == "ddp")
    assert metrics(run.root, "step")[-1] == 42


def sabotage(folder: Path, line: str) -> dict[str, str]:
    """Environment of a launch in which rank 1 runs `line` when it shards the fourth step's batch."""
    code = f"""
        import time
        import lora_dist.data.sampler as sampler
        original, calls = sampler.micro_batches, []
        def sabotaged(*arguments):
            calls.append(1)
            if len(calls) == 4:
                {line}
            return original(*arguments)
        sampler.micro_batches = sabotaged
    """
    return before_all_else(folder, code, rank=1)


def test_a_hanging_rank_ends_all_ranks_and_each_reports_where_it_is(
    long_training: list[object], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    variables = sabotage(tmp_path, "time.sleep(3600)")
    arguments = ("train", *long_training, "--train.checkpoint-steps", 2, "--hang-timeout", 10, "--out", run.root)
    start = time.monotonic()
    failed = attempt(*arguments, launcher=launcher("ddp.yaml"), **variables)
    assert time.monotonic() - start < 90
    assert failed.returncode != 0
    for rank in (0, 1):
        assert f"rank {rank} of 2 has made no progress for 10 s" in failed.stderr
    assert failed.stderr.count("It was at step 4 of 42") == 2
    assert "sabotaged" in failed.stderr  # the stack of the rank that hangs; both ranks write theirs word by word
    assert complete_checkpoints(run) == [2]


@pytest.mark.parametrize(
    "start",
    [
        ("torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--max-restarts", "1"),
        pytest.param((*launcher("ddp.yaml"), "--max_restarts", "1"), marks=pytest.mark.slow),
        pytest.param((*launcher("zero2.yaml"), "--max_restarts", "1"), marks=pytest.mark.slow),
    ],
    ids=["torchrun", "accelerate ddp", "accelerate zero2"],
)
def test_a_failed_run_that_the_launcher_restarts_resumes_from_its_checkpoint(
    start: tuple[str, ...], long_training: list[object], undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    variables = sabotage(tmp_path, "assert os.environ['TORCHELASTIC_RESTART_COUNT'] != '0', 'once'")
    arguments = ("train", *long_training, "--train.checkpoint-steps", 2, "--overwrite", "--out", run.root)
    result = attempt(*arguments, launcher=start, **variables)
    assert result.returncode == 0, result.stderr
    assert "AssertionError: once" in result.stderr
    assert "resuming after step 2" in result.stderr
    assert_same_adapter(run, undisturbed, exactly="zero2" not in " ".join(start))
    assert json.loads((run.checkpoint(42) / "state.json").read_text())["updates"] == 42


# By default, tests/training/test_trainer.py has a restart without a launcher.
@pytest.mark.slow
def test_a_refusal_that_the_launcher_restarts_is_no_resume(
    arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    start = ("torch.distributed.run", "--nproc_per_node", "1", "--standalone", "--max-restarts", "1")
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    result = attempt(*arguments, "--out", run.root, launcher=start)
    assert result.returncode != 0
    assert result.stderr.count(f"lora-dist: --out {run.root} holds another run: add --resume, --overwrite") == 2
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


# By default, one agent restarts its workers, see above.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_a_rank_killed_under_two_agents_is_restarted_and_all_resume(
    rendezvous: str, rank: int, long_training: list[object], undisturbed: RunDir, tmp_path: Path
) -> None:
    """Each agent counts its own restarts, so the ranks of one start may see different counts."""
    run, port = RunDir(tmp_path / "run"), free_port()
    arguments = ("train", *long_training, "--train.checkpoint-steps", 2, "--out", run.root)

    def agent(number: int) -> subprocess.Popen[str]:
        where = ["--rdzv_backend", rendezvous, "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "two"]
        if rendezvous == "static":
            where = ["--master_addr", "localhost", "--master_port", str(port), "--node_rank", str(number)]
        common = ("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "2")
        return begin(*arguments, launcher=(*common, *where))

    agents = [agent(0), agent(1)]
    wait_for(lambda: has_trained(run, 4), agents[0])
    ranks = {int(w.environ()["RANK"]): w for each in agents for w in workers(each)}
    ranks[rank].kill()
    results = [finish(each) for each in agents]
    assert [each.returncode for each in results] == [0, 0], results
    assert "resuming after step" in "".join(each.stderr for each in results)
    assert_same_adapter(run, undisturbed, exactly=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


# Kills


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


# By default, it is rank 0 that is killed, which writes the checkpoints and has the store of all ranks.
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_with_a_rank_killed_in_training_and_in_decoding_gives_the_same_result(
    rank: int, long_training: list[object], undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    arguments = ("run", *long_training, *DECODING, "--train.checkpoint-steps", 1, "--out", run.root)
    process = begin(*arguments, launcher=launcher("ddp.yaml"))
    assert kill_when(lambda: any(run.checkpoints.glob("step-*5/COMPLETE")), process, rank)
    assert not run.adapter.exists()
    process = begin(*arguments, "--resume", launcher=launcher("ddp.yaml"))
    ledgers = run.ledger(0).parent
    assert kill_when(lambda: any(f.stat().st_size for f in ledgers.glob("rank-*.jsonl")), process, rank)
    assert not run.outputs.exists()
    kept = [line for file in ledgers.glob("rank-*.jsonl") for line in file.read_text().splitlines()]
    lora_dist(*arguments, "--resume", launcher=launcher("ddp.yaml"))
    assert result(run) == result(undisturbed)
    ledger = "".join(file.read_text() for file in ledgers.glob("rank-*.jsonl"))
    assert all(ledger.count(line) == 1 for line in kept)  # no sentence is decoded twice


def result(run: RunDir) -> list[bytes]:
    return [
        (run.root / name).read_bytes()
        for name in ("adapter/adapter_model.safetensors", "decode/outputs.jsonl", "scores.json")
    ]


def passed(moment: float) -> bool:
    return time.monotonic() > moment


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_with_twenty_kills_at_random_moments_give_the_same_result(
    long_training: list[object], undisturbed: RunDir, tmp_path: Path
) -> None:
    draw, kills, number = random.Random(0), 0, 0
    while kills < 20:
        run = RunDir(tmp_path / f"run-{number}")
        number += 1
        finished = False
        while not finished:
            arguments = ("run", *long_training, *DECODING, "--train.checkpoint-steps", 1, "--out", run.root)
            resume = ("--resume",) if run.root.exists() else ()
            moment = time.monotonic() + draw.uniform(6, 22)
            process = begin(*arguments, *resume, launcher=launcher("ddp.yaml"))
            killed = kill_when(partial(passed, moment), process, draw.randrange(2))
            kills += killed
            finished = not killed
        assert result(run) == result(undisturbed)


# By default, the test of the launcher's restart has a failing rank whose exception ends all ranks.
@pytest.mark.slow
def test_an_exception_on_one_rank_ends_all_ranks_with_its_message(long_training: list[object], tmp_path: Path) -> None:
    code = """
        import lora_dist.data.sampler
        def broken(*_): raise MemoryError('rank 1 has no memory left')
        lora_dist.data.sampler.micro_batches = broken
    """
    variables = before_all_else(tmp_path, code, rank=1)
    start = time.monotonic()
    arguments = ("run", *long_training, "--out", tmp_path / "run")
    failed = attempt(*arguments, launcher=launcher("ddp.yaml"), **variables)
    assert failed.returncode != 0
    assert "rank 1 has no memory left" in failed.stderr
    assert time.monotonic() - start < END_SECONDS
