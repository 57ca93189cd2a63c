"""Proof on this machine that every strategy, number of processes and accumulation trains and decodes the same.

A few updates on ragged batches (the last one of an epoch has a single example, so most ranks have none), in fp32 and
without dropout: by one process, which is the reference, and then in every other way.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from lora_dist.config import IMPROVED, DataSettings, ModelSettings, Settings, TrainSettings, UserError
from lora_dist.config_io import to_json
from lora_dist.data.e2e import FILES, SPLITS, group_by_mr, load_split, write_csv
from lora_dist.distributed.device import devices_for
from lora_dist.distributed.launcher import OWN_WORDS, Strategy, last_words, launch_command
from lora_dist.files import write_json
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir

TOLERANCE = 1e-5
"""Largest relative difference that counts as rounding, in fp32."""

UPDATES = 20
GLOBAL_BATCH = 16
TRAIN_EXAMPLES = 2 * GLOBAL_BATCH + 1
DEV_EXAMPLES = 20
TEST_MRS = 12
PRETRAINING_STEPS = 30
AT_ONCE = 2
"""Cases that run side by side on a CPU: they are short, and spend most of it on starting, one thread each."""
HANG_TIMEOUT = 300.0
"""Seconds without progress after which a process ends, and says where it was."""


@dataclass(frozen=True)
class Case:
    """One way to train."""

    strategy: Strategy | None
    """None is one process without a launcher."""
    processes: int = 1
    accumulation_steps: int = 1

    def __str__(self) -> str:
        return f"{self.strategy or 'single'}, {self.processes} x {self.accumulation_steps}"

    def command(self) -> list[str]:
        """The beginning of the command line."""
        return [sys.executable] if self.strategy is None else launch_command(self.processes, self.strategy, "fp32")


@dataclass(frozen=True)
class Difference:
    """How far a run is from the reference."""

    adapter: float
    """Norm of the difference of all trained numbers, over the reference's norm."""
    loss: float
    """Largest relative difference of a loss, on training or dev set."""
    learning_rates: int
    """Updates with another learning rate, or missing."""
    samples: int
    """Updates of other examples, or missing."""
    sentences: int
    """Decoded sentences that differ."""

    @property
    def is_rounding(self) -> bool:
        """Whether the run is the same but for the order in which numbers were added up."""
        same = self.learning_rates == self.samples == self.sentences == 0
        return same and self.adapter < TOLERANCE and self.loss < TOLERANCE


def verify(
    model: ModelSettings | None, data: DataSettings | None, processes: Sequence[int], accumulation: Sequence[int]
) -> int:
    """Print a line for each way to train; 0 if all are the same, 1 if not.

    Args:
        model: the base model; None makes a tiny one.
        data: the corpus, of which a little is used; None makes a synthetic one.
        processes: numbers of processes to launch under each strategy.
        accumulation: accumulation steps to try with each of them.

    Raises:
        UserError: if the global batch does not divide in one of these ways, or model or data cannot be read.
    """
    cases = list(cases_here(processes, accumulation))
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        folder = Path(name)
        settings = prepare(folder, model, data)
        reference = RunDir(folder / "reference")
        devices = devices_for(max((case.processes for case in cases), default=1))
        failure = train_and_decode(Case(None), settings, reference, devices)
        if failure is not None:
            raise UserError(f"one process alone cannot train here, see lora-dist doctor: {failure}")
        print(f"{'':<24}{'adapter':>10}{'loss':>10}{'rates':>7}{'samples':>9}{'sentences':>11}", flush=True)
        runs = [RunDir(folder / str(number)) for number in range(len(cases))]
        with ThreadPoolExecutor(1 if torch.cuda.is_available() and not devices else AT_ONCE) as pool:
            failures = pool.map(lambda case, run: train_and_decode(case, settings, run, devices), cases, runs)
            endings = tqdm(zip(cases, runs, failures, strict=True), "verify", len(cases), unit="run", leave=False)
            verdicts = [_verdict(case, failure, run, reference) for case, run, failure in endings]
    good = all(verdicts)
    print(_coloured(f"{sum(verdicts)} of {len(verdicts)} are the same as one process, to rounding ({TOLERANCE})", good))
    return 0 if good else 1


def cases_here(processes: Sequence[int], accumulation: Sequence[int]) -> Iterator[Case]:
    """All ways to train on this machine beside the reference.

    Raises:
        UserError: if the global batch does not divide in one of them.
    """
    yield from (Case(None, 1, steps) for steps in accumulation if steps > 1)
    strategies: list[Strategy] = ["ddp"]
    if find_spec("deepspeed") is not None:
        strategies += ["zero1", "zero2", "zero3", "zero3_offload"]
    for strategy, count, steps in product(strategies, processes, accumulation):
        TrainSettings(global_batch_size=GLOBAL_BATCH, accumulation_steps=steps).micro_batch_size(count)
        yield Case(strategy, count, steps)


def prepare(folder: Path, model: ModelSettings | None, data: DataSettings | None) -> Settings:
    """Write a small corpus, and a tiny base model if there is none, into `folder`; the settings of all runs."""
    from lora_dist.data.synthetic import plain_texts, write_corpus
    from lora_dist.workflows.demo import pretrain

    corpus = folder / "corpus"
    write_corpus(corpus, seed=1, num_train_mrs=50)
    if model is None:
        model = ModelSettings(name=str(folder / "base"))
        pretrain(plain_texts(corpus), folder / "base", seed=1, steps=PRETRAINING_STEPS)
    for split in SPLITS:
        examples = load_split(DataSettings(dir=corpus) if data is None else data, split)
        if split == "test":
            groups = group_by_mr(examples)[:TEST_MRS]
            examples = [example for example in examples if example.mr in {group.mr for group in groups}]
        write_csv(corpus / FILES[split], examples[: {"train": TRAIN_EXAMPLES, "dev": DEV_EXAMPLES}.get(split)])
    train = TrainSettings(
        epochs=math.ceil(UPDATES / 3),
        max_steps=UPDATES,
        global_batch_size=GLOBAL_BATCH,
        learning_rate=2e-3,
        warmup_steps=5,
        log_steps=1,
        max_grad_norm=5.0,
    )
    return replace(
        IMPROVED,
        model=replace(model, dropout=0.0),
        lora=replace(IMPROVED.lora, dropout=0.0),
        data=DataSettings(dir=corpus),
        train=train,
        decode=replace(IMPROVED.decode, max_new_tokens=24, batch_tokens=1000),
    )


def train_and_decode(case: Case, settings: Settings, run: RunDir, devices: Mapping[str, str]) -> str | None:
    """Run one case in processes of its own; None if it ended well, else its last words.

    Args:
        case: how to train.
        settings: of all cases.
        run: where to.
        devices: see `device.devices_for`; the same for all cases, as each kind of device rounds in its own way.
    """
    file = run.root.with_suffix(".json")
    recipe = replace(settings.train, accumulation_steps=case.accumulation_steps)
    write_json(file, to_json(replace(settings, train=recipe)))
    # One thread and fp32 also without a launcher, which would otherwise choose more.
    environment = {**os.environ, **devices, "ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
    command = [*case.command(), "-m", "lora_dist.workflows.verify", str(file), str(run.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return last_words(done)


def compare(run: RunDir, reference: RunDir) -> Difference:
    """How far `run` is from `reference`; both with a line of metrics.jsonl an update."""
    ours, theirs = (load_file(r.adapter / ADAPTER_WEIGHTS) for r in (run, reference))
    difference = math.hypot(*(float((ours[name].double() - theirs[name].double()).norm()) for name in theirs))
    norm = math.hypot(*(float(tensor.double().norm()) for tensor in theirs.values()))
    series = {key: _series(run, key) for key in ("lr", "samples", "loss", "dev_loss")}
    expected = {key: _series(reference, key) for key in series}

    def unlike(key: str) -> int:
        return sum(series[key].get(step) != value for step, value in expected[key].items())

    losses = [
        abs(series[key].get(step, math.inf) / value - 1)
        for key in ("loss", "dev_loss")
        for step, value in expected[key].items()
    ]
    texts, references = (r.outputs_text.read_text("utf-8").split("\n") for r in (run, reference))
    sentences = sum(a != b for a, b in zip(texts, references, strict=True))
    return Difference(difference / norm, max(losses), unlike("lr"), unlike("samples"), sentences)


def _series(run: RunDir, key: str) -> dict[int, float]:
    """A column of metrics.jsonl by update."""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def _verdict(case: Case, failure: str | None, run: RunDir, reference: RunDir) -> bool:
    if failure is not None:
        tqdm.write(f"{case!s:<24}" + _coloured(f"FAILED: {failure}", False))
        return False
    found = compare(run, reference)
    numbers = f"{found.adapter:10.1e}{found.loss:10.1e}{found.learning_rates:7}{found.samples:9}{found.sentences:11}"
    tqdm.write(f"{case!s:<24}{numbers}  " + _coloured("same" if found.is_rounding else "DIFFERS", found.is_rounding))
    shutil.rmtree(run.root)
    return found.is_rounding


def _coloured(text: str, good: bool) -> str:
    return f"\033[{32 if good else 31}m{text}\033[0m" if sys.stdout.isatty() else text


def _run_case(file: Path, root: Path) -> None:
    """What each process of a case does."""
    from lora_dist.config_io import from_json
    from lora_dist.decoding.decode import decode
    from lora_dist.distributed.world import world
    from lora_dist.files import read_json
    from lora_dist.training.trainer import train

    settings, run = from_json(Settings, read_json(file, "verify has lost its settings")), RunDir(root)
    try:
        with world(hang_timeout=HANG_TIMEOUT) as here:
            train(settings, run, here)
            decode(settings, run, here)
    except UserError as error:
        sys.exit(f"{OWN_WORDS}{error}")


if __name__ == "__main__":
    _run_case(Path(sys.argv[1]), Path(sys.argv[2]))
