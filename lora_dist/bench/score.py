"""Seconds to score the test set, compared with the official script."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_dist.bench.rows import Row
from lora_dist.config import DataSettings
from lora_dist.data.e2e import format_outputs, format_references, group_by_mr, load_split
from lora_dist.errors import UserError
from lora_dist.metrics.java import find_java

REPEATS = 3


def bench_score(data: DataSettings, official: Path | None) -> list[Row]:
    """Measure the seconds to score the test set, from the start of the process to its end.

    The first reference of each meaning representation is taken as its output and scored against all of them.

    Args:
        data: the corpus.
        official: checkout of github.com/tuetschek/e2e-metrics, to be measured too; it runs with this Python and with
            our Java on its PATH.

    Raises:
        UserError: if the corpus cannot be read or a program fails.
    """
    groups = group_by_mr(load_split(data, "test"))
    environment = {**os.environ, "PATH": f"{find_java().parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    programs = {"score: lora_dist": ["-m", "lora_dist", "score"]}
    if official is not None:
        script = official.resolve() / "measure_scores.py"
        if not script.is_file():
            raise UserError(f"--official {official} has no measure_scores.py: give a checkout of e2e-metrics")
        programs["score: official script"] = [str(script)]
    with TemporaryDirectory(prefix="lora-dist-") as name:
        references, outputs = Path(name, "references.txt"), Path(name, "outputs.txt")
        references.write_text(format_references(groups), encoding="utf-8")
        outputs.write_text(format_outputs(group.references[0] for group in groups), encoding="utf-8")
        commands = {
            program: [sys.executable, *start, str(references), str(outputs)] for program, start in programs.items()
        }
        seconds = _best_seconds(commands, environment)
    ours = seconds["score: lora_dist"]
    return [Row(program, round(value, 3), "s", round(value / ours, 3)) for program, value in seconds.items()]


def _best_seconds(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> dict[str, float]:
    """Measure the least wall time of each command in `REPEATS` rounds.

    The commands take turns, so that a slow phase of the machine affects all of them.
    """
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(REPEATS):
        for name, command in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            best[name] = min(best[name], time.perf_counter() - start)
            if done.returncode != 0:
                end = " ".join(done.stderr.split())[-300:]
                raise UserError(f"{' '.join(command[:-2])} failed with exit code {done.returncode}: {end}")
    return best
