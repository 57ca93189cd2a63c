"""How long runs will take, from a few updates and sentences of each kind of run."""

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

LOG_STEPS = 10
UPDATES = 3 * LOG_STEPS
"""Updates to make, of which the first LOG_STEPS warm up."""
SENTENCES = 8
"""Meaning representations to decode."""


@dataclass(frozen=True)
class Pace:
    """What a kind of run was measured to take."""

    examples_per_second: float
    """Of training."""
    seconds_a_sentence: float
    """Of decoding."""
    overhead: float
    """Seconds to start, load and score."""
    examples: dict[str, int]
    """Of the whole corpus: those of train and dev, and the meaning representations of test."""

    def seconds(self, settings: Settings, trains: bool) -> float:
        """What a run with `settings` will take, or if it does not train, its decoding alone."""
        sentences = min(settings.decode.limit or self.examples["test"], self.examples["test"])
        total = self.overhead + sentences * self.seconds_a_sentence
        if trains:
            updates = settings.train.total_updates(self.examples["train"])
            epochs = -(-updates // settings.train.updates_per_epoch(self.examples["train"]))
            # A dev example goes forward alone, which is about a third of the work.
            examples = updates * settings.train.global_batch_size + epochs * self.examples["dev"] / 3
            total += examples / self.examples_per_second
        return total


def kind(settings: Settings) -> str:
    """Runs of one kind take equally long: those that differ in the seed or in how they decode."""
    return f"{settings.model.name} {nearest_preset(settings)}"


def measure_pace(
    data: DataSettings, runs: Sequence[Settings], launch: Callable[[Sequence[str]], int]
) -> dict[str, Pace]:
    """The pace of each kind among `runs` that works.

    Args:
        data: the corpus of all of them.
        runs: what will be trained.
        launch: runs a command of ours and returns its exit code.
    """
    kinds = {kind(settings): settings for settings in runs}
    if not kinds:
        return {}
    found: dict[str, Pace] = {}
    with tempfile.TemporaryDirectory(prefix="lora-dist-pace-") as folder:
        corpus = Path(folder)
        sizes = _write_sample(data, corpus)
        for number, (name, settings) in enumerate(kinds.items()):
            print(f"measuring {name}: {UPDATES} updates, {SENTENCES} sentences", flush=True)
            run = RunDir(corpus / str(number))
            # So many epochs that a corpus of a few examples has all the updates as well.
            recipe = replace(settings.train, epochs=UPDATES, max_steps=UPDATES, log_steps=LOG_STEPS)
            few = replace(
                settings,
                data=DataSettings(dir=corpus),
                train=replace(recipe, tracker="none", profile=False),
                decode=replace(settings.decode, limit=SENTENCES),
            )
            words = ["run", nearest_preset(few), *to_arguments(changed_options(few)), "--out", str(run.root)]
            start = time.monotonic()
            if launch(words) == 0:
                found[name] = _pace(run, settings, time.monotonic() - start, sizes)
    return found


def _write_sample(data: DataSettings, folder: Path) -> dict[str, int]:
    """Write a corpus that is decoded in seconds; how many examples, and test MRs, the whole one has."""
    splits = {split: load_split(data, split) for split in SPLITS}
    groups = group_by_mr(splits["test"])
    mrs = {group.mr for group in groups[:SENTENCES]}
    write_csv(folder / FILES["train"], splits["train"])
    write_csv(folder / FILES["dev"], splits["dev"][:SENTENCES])
    write_csv(folder / FILES["test"], [example for example in splits["test"] if example.mr in mrs])
    return {"train": len(splits["train"]), "dev": len(splits["dev"]), "test": len(groups)}


def _pace(run: RunDir, settings: Settings, seconds: float, sizes: dict[str, int]) -> Pace:
    rows = [row for row in read_jsonl(run.metrics) if "loss" in row and row["step"] > LOG_STEPS]
    rates = [row["examples_per_second"] for row in rows]
    timing = read_json(run.decode_timing, "no timing")
    rate, a_sentence = sum(rates) / len(rates), timing["seconds"] / timing["sentences"]
    measured = UPDATES * settings.train.global_batch_size / rate + timing["seconds"]
    return Pace(rate, a_sentence, max(0.0, seconds - measured), sizes)


def duration(seconds: float) -> str:
    """`3 h 20 min`, `4 min` or `30 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
