"""Estimate how long runs will take, from a few steps and sentences of each kind of run."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_dist.config import DataSettings, Settings
from lora_dist.config_io import changed_options, nearest_preset, to_arguments
from lora_dist.data.e2e import FILES, SPLITS, group_by_mr, load_split, write_csv
from lora_dist.data.sampler import DEV_SPEEDUP
from lora_dist.files import read_json
from lora_dist.run_dir import RunDir
from lora_dist.training.log_rows import read_log

log = logging.getLogger(__name__)

LOG_STEPS = 10
STEPS = 3 * LOG_STEPS
"""Steps to make; the first LOG_STEPS are a warm-up."""
SENTENCES = 8
"""Meaning representations to decode."""


@dataclass(frozen=True)
class Speed:
    """The measured speed of a kind of run."""

    examples_per_second: float
    """Training examples per second."""
    seconds_per_sentence: float
    """Decoding time per meaning representation."""
    overhead: float
    """Seconds to start, load and score."""
    examples: dict[str, int]
    """Sizes of the whole corpus: examples of train and dev, meaning representations (MRs) of `dev MRs` and test."""

    def seconds(self, settings: Settings, trains: bool) -> float:
        """Estimate the duration of a run with `settings`, or of its decoding only if it does not train."""
        sentences = min(settings.decode.limit or self.examples["test"], self.examples["test"])
        total = self.overhead + sentences * self.seconds_per_sentence
        if trains:
            steps = settings.train.total_steps(self.examples["train"])
            epochs = -(-steps // settings.train.steps_per_epoch(self.examples["train"]))
            dev = min(settings.data.limit_dev or self.examples["dev"], self.examples["dev"])
            examples = steps * settings.train.global_batch_size + epochs * dev / DEV_SPEEDUP
            total += examples / self.examples_per_second
            if settings.train.score_dev == "epoch":
                total += epochs * self.examples["dev MRs"] * self.seconds_per_sentence
        return total


def kind_of(settings: Settings) -> str:
    """Name the kind of a run: runs of one kind differ in seed or decoding settings only, and take equally long."""
    return f"{settings.model.name} {nearest_preset(settings)}"


def measure_speed(
    data: DataSettings, runs: Sequence[Settings], launch: Callable[[Sequence[str]], int]
) -> dict[str, Speed]:
    """Measure the speed of each kind of run, leaving out kinds that fail.

    Args:
        data: the corpus of all runs.
        runs: settings of the runs.
        launch: runs a lora-dist command, given its arguments, and returns its exit code.

    Returns:
        The speeds by `kind_of`.
    """
    kinds = {kind_of(settings): settings for settings in runs}
    if not kinds:
        return {}
    found: dict[str, Speed] = {}
    with tempfile.TemporaryDirectory(prefix="lora-dist-estimate-") as folder:
        corpus = Path(folder)
        sizes = _write_sample(data, corpus)
        for number, (name, settings) in enumerate(kinds.items()):
            log.info("measuring %s: %d steps, %d sentences", name, STEPS, SENTENCES)
            run = RunDir(corpus / str(number))
            # Enough epochs for all steps even if the corpus has only a few examples.
            cfg = replace(settings.train, epochs=STEPS, max_steps=STEPS, log_steps=LOG_STEPS)
            few = replace(
                settings,
                data=DataSettings(dir=corpus),
                train=replace(cfg, tracker="none", profile=False, score_dev="off", select="last"),
                decode=replace(settings.decode, limit=SENTENCES),
            )
            arguments = ["run", nearest_preset(few), *to_arguments(changed_options(few)), "--out", str(run.root)]
            start = time.monotonic()
            if launch(arguments) == 0:
                found[name] = _speed(run, settings, time.monotonic() - start, sizes)
    return found


def _write_sample(data: DataSettings, folder: Path) -> dict[str, int]:
    """Write a corpus that is decoded in seconds; return the sizes of the whole corpus, see `Speed.examples`."""
    splits = {split: load_split(data, split) for split in SPLITS}
    groups = group_by_mr(splits["test"])
    mrs = {group.mr for group in groups[:SENTENCES]}
    # Whole, but for a row of the cleaned corpus, which would be recognized.
    write_csv(folder / FILES["train"], splits["train"][int(data.corpus == "cleaned") :])
    write_csv(folder / FILES["dev"], splits["dev"][:SENTENCES])
    write_csv(folder / FILES["test"], [example for example in splits["test"] if example.mr in mrs])
    dev_mrs = len(group_by_mr(splits["dev"]))
    return {"train": len(splits["train"]), "dev": len(splits["dev"]), "dev MRs": dev_mrs, "test": len(groups)}


def _speed(run: RunDir, settings: Settings, seconds: float, sizes: dict[str, int]) -> Speed:
    rows = [row for row in read_log(run.metrics) if "loss" in row and row["step"] > LOG_STEPS]
    rates = [row["examples_per_second"] for row in rows]
    timing = read_json(run.decode_timing, "no timing")
    rate, per_sentence = sum(rates) / len(rates), timing["seconds"] / timing["sentences"]
    measured = STEPS * settings.train.global_batch_size / rate + timing["seconds"]
    return Speed(rate, per_sentence, max(0.0, seconds - measured), sizes)


def duration(seconds: float) -> str:
    """Format a duration as `3 h 20 min`, `4 min` or `30 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
