"""Reproduce the paper: one run per base model, preset and seed, then one report of all runs.

The seeds of a model and preset are one launch of `sweep`, or each run is a launch of its own.
"""

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

from lora_dist.config import DecodeSettings, ModelSettings, NgramScope
from lora_dist.config_io import changed_options, to_arguments
from lora_dist.distributed.device import default_processes
from lora_dist.distributed.launcher import STRATEGIES, Strategy, launch_command, refuse_launcher
from lora_dist.distributed.signals import StopRequest, graceful_shutdown
from lora_dist.errors import Interrupted, UserError
from lora_dist.metrics.java import find_java
from lora_dist.presets import PRESETS
from lora_dist.run_dir import RunDir
from lora_dist.workflows.estimate import Speed, duration, kind_of, measure_speed
from lora_dist.workflows.launch import Launch, check_folder_of_runs, report_launches
from lora_dist.workflows.settings import ReproduceCommand

log = logging.getLogger(__name__)

SCOPES: tuple[NgramScope, ...] = ("generated", "all")
LENGTH_PENALTIES = (0.8, 0.9)
"""The LoRA authors' decoder and transformers' differ in the scope of n-grams; their README and paper in the penalty."""
PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl that sets the signal which a process gets when its parent dies."""


def reproduce(command: ReproduceCommand) -> int:
    """Make the runs that are not complete, then the report.

    Returns:
        0 if all runs are in the report, 1 if some failed.

    Raises:
        UserError: for settings that cannot work, or that differ from those of existing runs.
        Interrupted: after a signal; the same command resumes.
    """
    refuse_launcher("reproduce")
    check_folder_of_runs(RunDir(command.out))
    processes = command.processes or default_processes()
    runs = _runs(command)
    launches = [*runs, *(decoding for run in runs for decoding in _decodings(run, command))]
    find_java()  # fail before the training
    for each in launches:
        each.check()
    with _exclusive_lock(command.out) as lock, graceful_shutdown() as request:

        def launch(arguments: Sequence[str], *, quiet: bool = False) -> int:
            return _launch(arguments, processes, STRATEGIES[command.strategy], lock, request, quiet=quiet)

        todo = [each for each in launches if not each.is_complete()]
        log.info(_summary(command, len(runs), len(launches), len(todo), processes))
        settings = [each.settings for each in todo]
        speeds = measure_speed(command.data, settings, lambda arguments: launch(arguments, quiet=True))
        if command.trains_together:
            _launch_sweeps(command, todo, speeds, launch)
            todo = [each for each in todo if each.source is not None]
        for number, each in enumerate(todo):
            log.info("%s: %d of %d%s", each.name, number + 1, len(todo), _time_left(todo[number:], speeds))
            if each.source is not None and not each.source.adapter.is_dir():
                log.warning("%s is skipped: %s has no adapter yet", each.name, each.source.root.name)
            elif launch(each.arguments()) != 0:
                log.warning("%s failed; the others continue", each.name)
    return report_launches(launches, RunDir(command.out))


def _launch_sweeps(
    command: ReproduceCommand, todo: Sequence[Launch], speeds: dict[str, Speed], launch: Callable[[Sequence[str]], int]
) -> None:
    """Make the runs of each model and preset that has incomplete ones, in one launch of `sweep`."""
    for model, preset in product(command.models, command.presets):
        prefix = f"{_short(model)}-{preset}-"
        runs = [each for each in todo if each.source is None and each.name.startswith(f"{prefix}seed")]
        if not runs:
            continue
        log.info("%s: %d runs at the same time%s", prefix[:-1], len(runs), _time_left(runs, speeds, "at most"))
        options = {name: value for name, value in changed_options(runs[0].settings).items() if name != "--train.seed"}
        together = [] if command.together is None else ["--together", str(command.together)]
        seeds = ["--seeds", *map(str, command.seeds), "--prefix", prefix, *together]
        if launch(["sweep", preset, *to_arguments(options), *seeds, "--out", str(command.out)]) != 0:
            log.warning("%s failed; the others continue", prefix[:-1])


def _summary(command: ReproduceCommand, runs: int, launches: int, todo: int, processes: int) -> str:
    """Describe in one line what will be done."""
    factors = [", ".join(map(str, values)) for values in (map(_short, command.models), command.presets, command.seeds)]
    decodings = f" and {launches - runs} more decodings" if launches > runs else ""
    where = f"{processes} {'process' if processes == 1 else 'processes'} under {command.out}"
    return f"{runs} runs ({' x '.join(factors)}){decodings} in {where}: {launches - todo} complete, {todo} to do"


def _runs(command: ReproduceCommand) -> list[Launch]:
    """List the runs: one per model, preset and seed."""
    launches, given = [], command.decode
    changed = {f.name: value for f in fields(given) if (value := getattr(given, f.name)) != f.default}
    for model, preset, seed in product(command.models, command.presets, command.seeds):
        settings = replace(
            PRESETS[preset].settings,
            model=ModelSettings(name=model),
            data=command.data,
            train=replace(command.train, seed=seed),
            decode=replace(PRESETS[preset].settings.decode, **changed),
        )
        launches.append(Launch(RunDir(command.out / f"{_short(model)}-{preset}-seed{seed}"), settings))
    if len({each.name for each in launches}) < len(launches):
        raise UserError(f"--models {' '.join(command.models)} end in the same name: rename a folder")
    return launches


def _decodings(run: Launch, command: ReproduceCommand) -> list[Launch]:
    """List the additional decodings of a run's adapter."""
    if not command.compare_decoding:
        return []
    found = []
    for scope, penalty in product(SCOPES, LENGTH_PENALTIES):
        decode: DecodeSettings = replace(run.settings.decode, ngram_scope=scope, length_penalty=penalty)
        if decode != run.settings.decode:
            folder = command.out / "decodings" / f"{run.name}-{scope}-{penalty:g}"
            found.append(Launch(RunDir(folder), replace(run.settings, decode=decode), source=run.run))
    return found


def _short(model: str) -> str:
    return Path(model).name


def _time_left(todo: Sequence[Launch], speeds: dict[str, Speed], about: str = "about") -> str:
    """Describe how long those of `todo` with a known speed will take one after the other, and until when."""
    known = [(speeds[kind_of(each.settings)], each) for each in todo if kind_of(each.settings) in speeds]
    seconds = [speed.seconds(each.settings, each.source is None) for speed, each in known]
    if not seconds:
        return ""
    end = time.strftime("%a %H:%M", time.localtime(time.time() + sum(seconds)))
    return f", {about} {duration(sum(seconds))} left, until {end}"


@contextmanager
def _exclusive_lock(root: Path) -> Iterator[int]:
    """Lock `root` and yield the lock's file descriptor.

    Launched processes inherit the descriptor and hold the lock too, so that no two of them write to one run.
    """
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(RunDir(root).lock, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for processes of another reproduce under %s", root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _launch(
    arguments: Sequence[str], processes: int, strategy: Strategy, lock: int, request: StopRequest, *, quiet: bool
) -> int:
    """Run a lora-dist command in `processes` processes, forward a signal to it, and return its exit code.

    Raises:
        Interrupted: once the command has ended after a signal.
    """
    # For one process, accelerate's launcher would die from a signal and leave the process behind.
    launcher = [sys.executable] if processes == 1 and not strategy.zero_stage else launch_command(processes, strategy)
    process = subprocess.Popen(
        [*launcher, "-m", "lora_dist", *arguments],
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C reaches only this process, which forwards it
        preexec_fn=_end_with_parent,
    )
    forwarded = False
    while True:
        try:
            code = process.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if request.signal is not None and not forwarded:
                forwarded = True
                process.send_signal(signal.SIGTERM)
    if request.signal is not None:
        raise Interrupted(f"{request.signal} ended reproduce: the same command resumes it")
    return code


def _end_with_parent() -> None:
    """Make this process save its work and end if its parent is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
