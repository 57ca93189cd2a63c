"""How long runs will take, from a few steps and sentences of each kind of run."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_dist.config import DataSettings, Settings
from lora_dist.config_io import changed_options, nearest_preset, to_arguments
from lora_dist.data.e2e import FILES, SPLITS, group_by_mr, load_split, write_csv
from lora_dist.files import read_json, read_jsonl
from lora_dist.run_dir import RunDir

log = logging.getLogger(__name__)

LOG_STEPS = 10
STEPS = 3 * LOG_STEPS
"""Steps to make, of which the first LOG_STEPS are a warm-up."""
SENTENCES = 8
"""Meaning representations to decode."""


@dataclass(frozen=True)
class Speed:
    """What was measured of a kind of run."""

    examples_per_second: float
    """Of training."""
    seconds_per_sentence: float
    """Of decoding."""
    overhead: float
    """Seconds to start, load and score."""
    examples: dict[str, int]
    """Of the whole corpus: examples of train and dev, and meaning representations of test."""

    def seconds(self, settings: Settings, trains: bool) -> float:
        """Expected duration of a run with `settings`, or if it does not train, of its decoding."""
        sentences = min(settings.decode.limit or self.examples["test"], self.examples["test"])
        total = self.overhead + sentences * self.seconds_per_sentence
        if trains:
            steps = settings.train.total_steps(self.examples["train"])
            epochs = -(-steps // settings.train.steps_per_epoch(self.examples["train"]))
            # A dev example has a forward pass only, which is about a third of the work.
            examples = steps * settings.train.global_batch_size + epochs * self.examples["dev"] / 3
            total += examples / self.examples_per_second
        return total


def kind_of(settings: Settings) -> str:
    """Runs of one kind take equally long: those that differ in the seed or in how they decode."""
    return f"{settings.model.name} {nearest_preset(settings)}"


def measure_speed(
    data: DataSettings, runs: Sequence[Settings], launch: Callable[[Sequence[str]], int]
) -> dict[str, Speed]:
    """The speed of each kind among `runs` that works.

    Args:
        data: the corpus of all of them.
        runs: what will be trained.
        launch: runs a command of ours and returns its exit code.
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
            # Enough epochs for all the steps on a corpus of a few examples, too.
            cfg = replace(settings.train, epochs=STEPS, max_steps=STEPS, log_steps=LOG_STEPS)
            few = replace(
                settings,
                data=DataSettings(dir=corpus),
                train=replace(cfg, tracker="none", profile=False),
                decode=replace(settings.decode, limit=SENTENCES),
            )
            arguments = ["run", nearest_preset(few), *to_arguments(changed_options(few)), "--out", str(run.root)]
            start = time.monotonic()
            if launch(arguments) == 0:
                found[name] = _speed(run, settings, time.monotonic() - start, sizes)
    return found


def _write_sample(data: DataSettings, folder: Path) -> dict[str, int]:
    """Write a corpus that is decoded in seconds; return how many examples, and test MRs, the whole one has."""
    splits = {split: load_split(data, split) for split in SPLITS}
    groups = group_by_mr(splits["test"])
    mrs = {group.mr for group in groups[:SENTENCES]}
    write_csv(folder / FILES["train"], splits["train"])
    write_csv(folder / FILES["dev"], splits["dev"][:SENTENCES])
    write_csv(folder / FILES["test"], [example for example in splits["test"] if example.mr in mrs])
    return {"train": len(splits["train"]), "dev": len(splits["dev"]), "test": len(groups)}


def _speed(run: RunDir, settings: Settings, seconds: float, sizes: dict[str, int]) -> Speed:
    rows = [row for row in read_jsonl(run.metrics) if "loss" in row and row["step"] > LOG_STEPS]
    rates = [row["examples_per_second"] for row in rows]
    timing = read_json(run.decode_timing, "no timing")
    rate, per_sentence = sum(rates) / len(rates), timing["seconds"] / timing["sentences"]
    measured = STEPS * settings.train.global_batch_size / rate + timing["seconds"]
    return Speed(rate, per_sentence, max(0.0, seconds - measured), sizes)


def duration(seconds: float) -> str:
    """`3 h 20 min`, `4 min` or `30 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
