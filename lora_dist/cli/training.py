"""The processes and the output folder of the commands that train."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lora_dist.cli.arguments import TrainCommand
from lora_dist.distributed.collectives import context_on_main, on_main
from lora_dist.distributed.world import World, world
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import began_here, check_output, exclusive


def training_world(command: TrainCommand) -> AbstractContextManager[World]:
    """Connect the processes of a training."""
    tracker = command.train.tracker
    return world(command.device, tracker=tracker, folder=command.out, hang_timeout=command.hang_timeout)


@contextmanager
def claimed_output(command: TrainCommand, here: World) -> Iterator[bool]:
    """Keep other processes out of --out during the block, and yield whether to delete the run in it.

    What this launch began, it resumes when its launcher restarts it, and does not delete again.
    """
    folder, launch = RunDir(command.out), here.launch

    def check() -> bool:
        began = launch.restarted and began_here(folder, launch.agents)
        overwrite = command.overwrite and not began
        check_output(folder, resume=command.resume or began, overwrite=overwrite)
        return overwrite

    on_main(here, check)  # before a lock is put there
    with context_on_main(here, exclusive(folder)):
        yield on_main(here, check)
