"""The adapters of the epochs: which of them becomes the run's, by the dev scores in metrics.jsonl."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lora_dist.config import Settings
from lora_dist.config_io import read_config
from lora_dist.distributed.world import World
from lora_dist.errors import UserError
from lora_dist.files import new_folder, write_json
from lora_dist.metrics.suite import METRICS
from lora_dist.model.adapter import ADAPTER_FILES
from lora_dist.run_dir import RunDir
from lora_dist.training.log_rows import DEV, read_log

ScoreDev = Callable[[Path, Callable[[], bool], Callable[[], None]], dict[str, float]]
"""Scores the dev set by generation, see `evaluation.dev_scores.DevScorer`: its arguments are the folder of an adapter,
whether this rank has received a signal, and what raises on every rank if any has. Collective: call on all ranks."""

DevScorer = Callable[[Settings, World], ScoreDev]
"""Prepares the scoring, and raises UserError on every rank for a dev set that cannot be decoded. Collective."""


def select_epoch(run: RunDir, select: Literal["last", "best"]) -> None:
    """Record the epochs' dev scores in config.json, and with `best` make the best one's adapter that of the run.

    The best epoch is the one with the highest BLEU, of several the earliest.

    Raises:
        UserError: if the scores, or the adapter of the best epoch, are missing.
    """
    epochs = dev_scores(run)
    if not epochs:
        raise UserError(f"{run.metrics} has no dev scores: train again with --overwrite")
    chosen = max(epochs, key=lambda scores: scores["BLEU"]) if select == "best" else epochs[-1]
    selection = {"epoch": chosen["epoch"], "step": chosen["step"], "dev_scores": epochs}
    write_json(run.config, {**read_config(run), "selection": selection})
    if select == "best":
        source = run.epoch(chosen["epoch"])
        try:
            with new_folder(run.adapter) as folder:
                for name in ADAPTER_FILES:
                    shutil.copyfile(source / name, folder / name)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} of the best epoch is missing: train again with --overwrite") from None


def dev_scores(run: RunDir) -> list[dict[str, Any]]:
    """Read the scores of each epoch from metrics.jsonl: epoch (from 1), step, and the scores by their names."""
    return [
        {
            "epoch": math.ceil(row["epoch"]),
            "step": row["step"],
            **{name.removeprefix(DEV): value for name, value in row.items() if name.removeprefix(DEV) in METRICS},
        }
        for row in read_log(run.metrics)
        if f"{DEV}BLEU" in row
    ]
