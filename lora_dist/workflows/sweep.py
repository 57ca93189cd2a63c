"""Make many runs over one frozen base model: trained at the same time, then decoded, scored and reported.

The runs are dealt out to the ranks, each of which trains, decodes and scores its own as a world of one process. So no
gradient is communicated, and a run depends on the number of ranks by rounding at most.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from lora_dist.config import Settings
from lora_dist.config_io import as_options, versions
from lora_dist.data.token_cache import load_corpus
from lora_dist.decoding.decode import check_test_set, decode
from lora_dist.distributed.collectives import SharedCounter, first_on_node, on_main
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.launcher import local_processes
from lora_dist.distributed.signals import graceful_shutdown
from lora_dist.distributed.world import World
from lora_dist.errors import Interrupted, UserError
from lora_dist.evaluation.dev_scores import DevScorer
from lora_dist.evaluation.scoring import score_run
from lora_dist.metrics.java import find_java
from lora_dist.model.base import load_config, load_tokenizer
from lora_dist.planning.plan import make_plan
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir
from lora_dist.run_guard import check_output, exclusive
from lora_dist.training.checkpoint import complete_steps
from lora_dist.training.trainer import train
from lora_dist.workflows.launch import Launch, check_folder_of_runs
from lora_dist.workflows.settings import SweepSettings

log = logging.getLogger(__name__)

MOST_TOGETHER = 8
"""Runs that are trained at the same time by default; with more, an H200 takes hardly less time for each."""


USABLE = 0.85
"""Part of a device's memory that a plan may use; the rest is for CUDA's context and the allocator's reserve."""


def sweep_runs(command: SweepSettings, settings: Settings, here: World) -> list[Launch]:
    """Train, decode and score the runs that are not complete. Collective: call on all ranks.

    Args:
        command: what the runs differ in.
        settings: what they have in common.
        here: the ranks.

    Returns:
        All runs, complete or not.

    Raises:
        UserError: for settings that cannot work, or that differ from those of existing runs.
        Interrupted: after a signal; the same command resumes.
    """
    launches = [Launch(RunDir(command.out / name), own) for name, own in command.runs(settings)]
    _check(command, settings, launches, here)
    todo = {each.name for each in on_main(here, lambda: [each for each in launches if not each.is_complete()])}
    groups = _groups(launches, here, _together(command, settings, len(launches), here))
    if here.is_main:
        log.info(_summary(launches, len(todo), here.size, max(map(len, groups[0]), default=0)))
    finished, solo = SharedCounter(here), here.solo()
    for group in groups[here.rank]:
        own = [each for each in group if each.name in todo]
        with _all_locked(own):
            _train(own, solo)
            trained = [each for each in own if _is_trained(each)]
            for each in trained:
                decode(each.settings, each.run, solo)
        for each in trained:
            here.watchdog.progress(f"scoring {each.name}")
            score_run(each.run)
    finished.add(1)
    _wait_for_all(finished, here)
    return launches


def why_alone(settings: Settings) -> str | None:
    """Return why runs with these settings are not trained at the same time; None if they can be."""
    reasons = {
        "--train.refs-per-mr is above 1": settings.train.refs_per_mr > 1,
        "--train.gradient-checkpointing is on": settings.train.gradient_checkpointing,
        "--model.dropout is not 0": settings.model.dropout != 0,
        "--lora.dora is on": settings.lora.dora,
        "--train.lora-plus-ratio is not 1": settings.train.lora_plus_ratio != 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _together(command: SweepSettings, settings: Settings, runs: int, here: World) -> int:
    """Return how many of the runs each process trains at the same time, at most. Collective: call on all ranks."""
    if (reason := why_alone(settings)) is not None:
        if here.is_main:
            log.info("runs are trained one after the other: %s", reason)
        return 1
    if command.together is not None:
        return command.together
    return on_main(here, lambda: fitting(settings, min(-(-runs // here.size), MOST_TOGETHER), here))


def fitting(settings: Settings, most: int, here: World) -> int:
    """Return how many runs fit in the memory of a process by plan, at least 1 and at most `most`."""
    for number in range(most, 1, -1):
        plan = make_plan(settings, local_processes(), here.device.type, here.precision, None, number)
        if plan.available is None or plan.memory["single"].total <= USABLE * plan.available:
            return number
    return 1


def _check(command: SweepSettings, settings: Settings, launches: Sequence[Launch], here: World) -> None:
    """Refuse what cannot work before anything long is done. Collective: call on all ranks."""
    out = RunDir(command.out)
    if here.zero_stage:
        raise UserError(f"sweep under {here.strategy}: each process trains runs of its own, so start it with ddp.yaml")
    settings.train.micro_batch_size(1)

    def check_files() -> None:
        check_folder_of_runs(out)
        for each in launches:
            check_output(each.run, resume=True, overwrite=False)
            each.check()
        find_java()  # fail before the training
        check_test_set(settings)
        out.root.mkdir(parents=True, exist_ok=True)
        out.lock.touch()

    on_main(here, check_files)
    require_shared(here, out.root)
    chosen = {f"{name} of {each.name}": value for each in launches for name, value in _options(each.settings).items()}
    require_agreement(here, {"the runs' names": [each.name for each in launches], **chosen, **versions()})
    positions = on_main(here, lambda: load_config(settings.model).n_positions)
    first_on_node(here, lambda: load_corpus(settings.data, load_tokenizer(settings.model), positions))


def _options(settings: Settings) -> dict[str, object]:
    return as_options(settings, "model", "lora", "data", "train", "decode")


@contextmanager
def _all_locked(launches: Sequence[Launch]) -> Iterator[None]:
    """Keep other processes from writing to the runs during the block."""
    with ExitStack() as stack:
        for each in launches:
            stack.enter_context(exclusive(each.run))
        yield


def _groups(launches: Sequence[Launch], here: World, together: int) -> list[list[list[Launch]]]:
    """Deal the runs out to the ranks, and split those of each into groups that train at the same time.

    It depends on all runs, complete or not, so that a sweep that resumes has the arrangement that it had.
    """
    found = []
    for share in np.array_split(np.arange(len(launches)), here.size):
        groups = np.array_split(share, -(-len(share) // together)) if len(share) else []
        found.append([[launches[number] for number in group] for group in groups])
    return found


def _summary(launches: Sequence[Launch], todo: int, processes: int, together: int) -> str:
    idle = max(0, processes - len(launches))
    surplus = f"; {idle} of the processes have no run and idle" if idle else ""
    where = f"{processes} {'process' if processes == 1 else 'processes'}"
    return (
        f"{len(launches)} runs, up to {together} at the same time in each of {where}: {len(launches) - todo} complete, "
        f"{todo} to do{surplus}"
    )


def _is_trained(launch: Launch) -> bool:
    return (launch.run.adapter / ADAPTER_WEIGHTS).is_file()


def _train(group: Sequence[Launch], solo: World) -> None:
    """Train the runs of a group that have no adapter, those that can start from the same step at the same time."""
    left = [each for each in group if not _is_trained(each)]
    while left:
        members = _same_start(left)
        try:
            train([(each.settings, each.run) for each in members], solo, scorer=DevScorer)
        except Interrupted:
            raise Interrupted("a signal ended the sweep: the same command resumes it") from None
        except FloatingPointError as error:
            log.error("%s failed: %s", ", ".join(each.name for each in members), error)
        left = [each for each in left if each not in members]


def _same_start(runs: Sequence[Launch]) -> list[Launch]:
    """Return the runs that can start from the step that the last of them has reached.

    A kill leaves runs that trained together at most one checkpoint apart, and none has deleted the one before. A run
    that was resumed alone may be further; it is trained later.
    """
    steps = {each.name: complete_steps(each.run) or [0] for each in runs}
    start = min(found[-1] for found in steps.values())
    nearby = start + runs[0].settings.train.checkpoint_steps
    return [each for each in runs if steps[each.name][-1] <= nearby and (start == 0 or start in steps[each.name])]


def _wait_for_all(finished: SharedCounter, here: World) -> None:
    """Wait until all ranks have finished their runs, which may take much longer than a collective may."""
    with graceful_shutdown() as request:
        while finished.add(0) < here.size:
            here.watchdog.progress("waiting for the other ranks' runs")
            if request.signal is not None:
                raise Interrupted(f"{request.signal} ended the sweep: the same command resumes it")
            time.sleep(0.2)
