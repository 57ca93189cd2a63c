"""`--train.profile`: the time of a few steps by operation, as a table and as a trace."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import profile, schedule

from lora_dist.distributed.world import World
from lora_dist.files import write_text
from lora_dist.run_dir import RunDir

SKIPPED = 9
"""Steps before the profiler starts: the first ones compile kernels and allocate buffers."""
WARM_UP = 1
"""Steps in which the profiler runs without recording, as its own start is slow."""
PROFILED = 5
"""Steps that are recorded."""
ROWS = 40
"""Operations in the table, sorted by self time."""

log = logging.getLogger(__name__)


@contextmanager
def profile_steps(run: RunDir, world: World, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """Profile a few steps of the block on rank 0 if `enabled`, and write RUN/profile.

    Yields a function that the block has to call at the end of each step.
    """
    if not (enabled and world.is_main):
        yield lambda: None
        return
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"

    def write(profiler: profile) -> None:
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        write_text(run.profile_table, f"{PROFILED} steps, torch {torch.__version__}, {world.describe()}\n{table}\n")
        profiler.export_chrome_trace(str(run.profile_trace))
        log.info("profile in %s, and as a trace for ui.perfetto.dev in %s", run.profile_table, run.profile_trace)

    phases = schedule(wait=SKIPPED, warmup=WARM_UP, active=PROFILED, repeat=1)
    with profile(schedule=phases, on_trace_ready=write) as profiler:
        yield profiler.step
