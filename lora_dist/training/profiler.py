"""`--train.profile`: where the time of a few updates goes, as a table by operation and as a trace to look at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lora_dist.distributed.world import World
from lora_dist.files import write_text
from lora_dist.run_dir import RunDir

SKIPPED = 9
"""Updates before those that are looked at: the first ones prepare kernels and buffers."""
WARM_UP = 1
"""Updates in which the profiler runs and is not listened to, as its own start is slow."""
PROFILED = 5
ROWS = 40
"""Operations in the table, those with the most time of their own first."""


@contextmanager
def profile_updates(run: RunDir, world: World, wanted: bool) -> Iterator[Callable[[], None]]:
    """Profile `PROFILED` of the updates in the block on rank 0, if `wanted`, and write RUN/profile.

    What the block gets is to be called at the end of each update.
    """
    if not (wanted and world.is_main):
        yield lambda: None
        return
    on_gpu = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def write(profiler: profile) -> None:
        order = f"self_{world.device.type if on_gpu else 'cpu'}_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        write_text(run.profile_table, f"{PROFILED} updates, torch {torch.__version__}, {world.describe()}\n{table}\n")
        profiler.export_chrome_trace(str(run.profile_trace))
        print(f"profile in {run.profile_table}, and as a trace for ui.perfetto.dev in {run.profile_trace}", flush=True)

    phases = schedule(wait=SKIPPED, warmup=WARM_UP, active=PROFILED, repeat=1)
    with profile(activities=activities, schedule=phases, on_trace_ready=write) as profiler:
        yield profiler.step
