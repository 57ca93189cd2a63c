"""Base models x presets x seeds: each an ordinary run in a launch of its own, then one report over all of them."""

import ctypes
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from lora_dist.config import PRESETS, DecodeSettings, ModelSettings, NgramScope, Settings, UserError
from lora_dist.config_io import WITHOUT_EFFECT, as_options, changed_options, nearest_preset, to_arguments, to_json
from lora_dist.distributed.device import default_processes
from lora_dist.distributed.launcher import Strategy, launch_command, launched_processes
from lora_dist.distributed.signals import Interrupted, StopRequest, heed_signals
from lora_dist.files import read_json
from lora_dist.metrics.java import find_java
from lora_dist.report.write import write_report
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir
from lora_dist.workflows.estimate import Pace, duration, kind, measure_pace

if TYPE_CHECKING:
    from lora_dist.cli.commands import ReproduceCommand

SCOPES: tuple[NgramScope, ...] = ("generated", "all")
LENGTH_PENALTIES = (0.8, 0.9)
"""The LoRA authors' decoder and transformers' ban differently; their README and their paper penalise differently."""
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent dies."""


@dataclass(frozen=True)
class Job:
    """One launch: a run to make, or one to decode in another way."""

    run: RunDir
    settings: Settings
    source: RunDir | None = None
    """The run with the adapter; None trains it."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.run.root.name

    def arguments(self) -> list[str]:
        """The words after `-m lora_dist`."""
        options = changed_options(self.settings)
        if self.source is None:
            preset = nearest_preset(self.settings)
            return ["run", preset, *to_arguments(options), "--out", str(self.run.root), "--resume"]
        decoding = {name: value for name, value in options.items() if name.startswith("--decode.")}
        return ["decode", str(self.source.root), *to_arguments(decoding), "--out", str(self.run.root)]

    def is_complete(self) -> bool:
        """Whether its sentences are there, of its adapter and by these settings; of a training also its scores."""
        adapter = (self.source or self.run).adapter / ADAPTER_WEIGHTS
        if not all(p.is_file() for p in (adapter, self.run.config, self.run.decode_signature, self.run.outputs)):
            return False
        signature = read_json(self.run.decode_signature, "no signature")
        of_this = signature["adapter"] == hashlib.sha256(adapter.read_bytes()).hexdigest()
        scored = self.run.scores.is_file() or self.source is not None
        return scored and of_this and signature["decode"] == to_json(self.settings.decode)

    def check(self) -> None:
        """Refuse a folder whose adapter was trained, or is being trained, in another way.

        Raises:
            UserError: which names the difference.
        """
        if self.run.config.is_file():
            found = self.run.settings()
            own, others = (as_options(s, "model", "lora", "data", "train") for s in (self.settings, found))
            for name in own:
                if own[name] != others[name] and name not in WITHOUT_EFFECT:
                    raise UserError(
                        f"{self.run.root} was made with {name} {others[name]}, not {own[name]}: name another --out, or "
                        "delete that folder"
                    )


def reproduce(command: "ReproduceCommand") -> int:
    """Make what is missing, then the report; 0 if all runs are in it, 1 if some failed.

    Raises:
        UserError: for settings that cannot work, or that are not those of the runs there.
        Interrupted: when a signal asked for the end; the same command goes on.
    """
    if launched_processes() > 1:
        raise UserError("reproduce launches each run itself: start it without a launcher, and give --processes")
    if RunDir(command.out).config.is_file():
        raise UserError(f"--out {command.out} is the folder of a run: name one that holds runs, or a new one")
    RunDir(command.out).require_folder()
    processes = command.processes or default_processes()
    runs = _runs(command)
    jobs = [*runs, *(decoding for run in runs for decoding in _decodings(run, command))]
    find_java()  # not after hours of training
    for job in jobs:
        job.check()
    with _alone(command.out) as lock, heed_signals() as request:

        def launch(arguments: Sequence[str], *, quiet: bool = False) -> int:
            return _launch(arguments, processes, command.strategy, lock, request, quiet=quiet)

        todo = [job for job in jobs if not job.is_complete()]
        print(_intention(command, len(runs), len(jobs), len(todo), processes), flush=True)
        paces = measure_pace(command.data, [job.settings for job in todo], lambda words: launch(words, quiet=True))
        for number, job in enumerate(todo):
            print(f"{job.name}: {number + 1} of {len(todo)}{_time_left(todo[number:], paces)}", flush=True)
            if job.source is not None and not job.source.adapter.is_dir():
                print(f"{job.name} has to wait for {job.source.root.name}", file=sys.stderr, flush=True)
            elif launch(job.arguments()) != 0:
                print(f"{job.name} failed; the others go on", file=sys.stderr, flush=True)
    complete = [job for job in jobs if job.is_complete()]
    if complete:
        print(write_report([job.run for job in complete], RunDir(command.out)))
    if failed := [job.name for job in jobs if job not in complete]:
        print(f"failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def _intention(command: "ReproduceCommand", runs: int, jobs: int, todo: int, processes: int) -> str:
    """What will be done, in a line."""
    factors = [", ".join(map(str, values)) for values in (map(_short, command.models), command.presets, command.seeds)]
    decodings = f" and {jobs - runs} more decodings" if jobs > runs else ""
    where = f"{processes} {'process' if processes == 1 else 'processes'} under {command.out}"
    return f"{runs} runs ({' x '.join(factors)}){decodings} in {where}: {jobs - todo} complete, {todo} to do"


def _runs(command: "ReproduceCommand") -> list[Job]:
    """One a model, preset and seed."""
    jobs = []
    for model, preset, seed in product(command.models, command.presets, command.seeds):
        settings = replace(
            PRESETS[preset],
            model=ModelSettings(name=model),
            data=command.data,
            train=replace(command.train, seed=seed),
            decode=command.decode,
        )
        jobs.append(Job(RunDir(command.out / f"{_short(model)}-{preset}-seed{seed}"), settings))
    if len({job.name for job in jobs}) < len(jobs):
        raise UserError(f"--models {' '.join(command.models)} end in the same name: rename a folder")
    return jobs


def _decodings(job: Job, command: "ReproduceCommand") -> list[Job]:
    """The other ways to decode a run's adapter."""
    if not command.compare_decoding:
        return []
    found = []
    for scope, penalty in product(SCOPES, LENGTH_PENALTIES):
        decode: DecodeSettings = replace(command.decode, ngram_scope=scope, length_penalty=penalty)
        if decode != command.decode:
            folder = command.out / "decodings" / f"{job.name}-{scope}-{penalty:g}"
            found.append(Job(RunDir(folder), replace(job.settings, decode=decode), source=job.run))
    return found


def _short(model: str) -> str:
    return Path(model).name


def _time_left(todo: Sequence[Job], paces: dict[str, Pace]) -> str:
    """How long `todo` will take, and until when, as far as it was measured."""
    known = [(paces[kind(job.settings)], job) for job in todo if kind(job.settings) in paces]
    seconds = [pace.seconds(job.settings, job.source is None) for pace, job in known]
    if not seconds:
        return ""
    end = time.strftime("%a %H:%M", time.localtime(time.time() + sum(seconds)))
    return f", about {duration(sum(seconds))} for all that is left, until {end}"


@contextmanager
def _alone(root: Path) -> Iterator[int]:
    """The file descriptor of a lock on `root`, which what is launched holds too, so that no two write to one run."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for what another reproduce has started under {root}", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _launch(
    arguments: Sequence[str], processes: int, strategy: Strategy, lock: int, request: StopRequest, *, quiet: bool
) -> int:
    """Run one command of ours in `processes`, end it when a signal asks, and return its exit code.

    Raises:
        Interrupted: once it has ended because a signal asked for it.
    """
    # accelerate's launcher of one process would die of a signal and leave the process alone.
    launcher = [sys.executable] if processes == 1 and strategy == "ddp" else launch_command(processes, strategy)
    process = subprocess.Popen(
        [*launcher, "-m", "lora_dist", *arguments],
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        preexec_fn=_end_with_parent,
    )
    asked = False
    while True:
        try:
            code = process.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if request.signal is not None and not asked:
                asked = True
                process.send_signal(signal.SIGTERM)
    if request.signal is not None:
        raise Interrupted(f"{request.signal} ended reproduce; the same command goes on where it was")
    return code


def _end_with_parent() -> None:
    """Have this process end, with its work saved, should its parent be killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
