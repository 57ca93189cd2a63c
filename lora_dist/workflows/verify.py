"""Verify that every strategy, world size and accumulation trains and decodes the same, also with other runs together.

Each case makes a few steps on ragged batches without dropout; the last batch of an epoch has a single example, so most
ranks have none. One process is the reference, on a GPU without CUDA graphs. `verify_case.py` makes and compares a case.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from lora_dist.config import DataSettings, ModelSettings, Settings, TrainSettings
from lora_dist.data.e2e import FILES, SPLITS, group_by_mr, load_split, write_csv
from lora_dist.data.synthetic import plain_texts, write_corpus
from lora_dist.distributed.device import devices_for, has_bf16
from lora_dist.distributed.launcher import STRATEGIES, refuse_launcher
from lora_dist.distributed.packages import is_installed
from lora_dist.errors import UserError
from lora_dist.model.tiny import pretrain
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir
from lora_dist.training.captured import why_eager
from lora_dist.workflows.verify_case import TOLERANCE, Case, compare, train_and_decode

STEPS = 20
GLOBAL_BATCH = 16
TRAIN_EXAMPLES = 2 * GLOBAL_BATCH + 1
DEV_EXAMPLES = 20
TEST_MRS = 12
PRETRAINING_STEPS = 30
TOGETHER = 3
"""Runs of the case that trains several at the same time."""
CONCURRENT_CASES = 2
"""Cases that run at the same time on a CPU: they are short, mostly start-up, with one thread each."""


def verify(
    model: ModelSettings | None, data: DataSettings | None, processes: Sequence[int], accumulation: Sequence[int]
) -> int:
    """Train in every way and print one line per case.

    Args:
        model: the base model; None creates a tiny one.
        data: the corpus, of which a few examples are used; None creates a synthetic one.
        processes: numbers of processes to launch with each strategy.
        accumulation: accumulation steps to combine with each of them.

    Returns:
        0 if all cases are the same as the reference, 1 if not.

    Raises:
        UserError: if the global batch does not divide in one of the cases, or model or data cannot be read.
    """
    cases = list(cases_here(processes, accumulation))
    refuse_launcher("verify")
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        folder = Path(name)
        settings = write_inputs(folder, model, data)
        references = {case.precision: RunDir(folder / f"reference-{case.precision}") for case in cases}
        devices = devices_for(max((case.processes for case in cases), default=1))
        for precision, reference in references.items():
            failure = train_and_decode(Case(None, precision=precision), settings, reference, devices)
            if failure is not None:
                raise UserError(f"one process cannot train here, see lora-dist doctor: {failure}")
        print(f"{'':<24}{'adapter':>10}{'loss':>10}{'rates':>7}{'samples':>9}{'sentences':>11}", flush=True)
        runs = [RunDir(folder / str(number)) for number in range(len(cases))]
        with ThreadPoolExecutor(1 if torch.cuda.is_available() and not devices else CONCURRENT_CASES) as pool:
            failures = pool.map(lambda case, run: train_and_decode(case, settings, run, devices), cases, runs)
            finished = tqdm(
                zip(cases, runs, failures, strict=True), "verify", len(cases), unit="run", leave=False, disable=None
            )
            verdicts = [_verdict(case, failure, run, references[case.precision]) for case, run, failure in finished]
    good = all(verdicts)
    tolerances = ", ".join(f"{TOLERANCE[precision]:g} in {precision}" for precision in references)
    print(
        _coloured(f"{sum(verdicts)} of {len(verdicts)} are the same as one process, to rounding ({tolerances})", good)
    )
    return 0 if good else 1


def cases_here(processes: Sequence[int], accumulation: Sequence[int]) -> Iterator[Case]:
    """Yield all ways to train on this machine except the reference.

    Raises:
        UserError: if the global batch does not divide in one of them.
    """
    yield from (Case(None, 1, steps) for steps in accumulation if steps > 1)
    yield Case(None, together=TOGETHER)
    with_deepspeed = is_installed("deepspeed")
    strategies = [strategy for strategy in STRATEGIES.values() if with_deepspeed or not strategy.zero_stage]
    for strategy, world_size, steps in product(strategies, processes, accumulation):
        TrainSettings(global_batch_size=GLOBAL_BATCH, accumulation_steps=steps).micro_batch_size(world_size)
        yield Case(strategy, world_size, steps)
    if has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        yield from (Case(STRATEGIES["ddp"], world_size, precision="bf16") for world_size in processes)
    if torch.cuda.is_available() and not devices_for(max(processes)):
        yield from (Case(None, captured=True, together=number) for number in (1, TOGETHER))
        captured = [s for s in strategies if why_eager(TrainSettings(), s.zero_stage, offload=s.offload) is None]
        yield from (Case(strategy, size, captured=True) for strategy, size in product(captured, processes))


def write_inputs(folder: Path, model: ModelSettings | None, data: DataSettings | None) -> Settings:
    """Write a small corpus, and a tiny base model if `model` is None, to `folder`; return the settings of all cases."""
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
        epochs=math.ceil(STEPS / 3),
        max_steps=STEPS,
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


def _verdict(case: Case, failure: str | None, run: RunDir, reference: RunDir) -> bool:
    if failure is not None:
        tqdm.write(f"{case!s:<24}" + _coloured(f"FAILED: {failure}", False))
        return False
    found = compare(run, reference)
    values = f"{found.adapter:10.1e}{found.loss:10.1e}{found.learning_rates:7}{found.samples:9}{found.sentences:11}"
    same = found.is_rounding(case.precision)
    tqdm.write(f"{case!s:<24}{values}  " + _coloured("same" if same else "DIFFERS", same))
    shutil.rmtree(run.root)
    return same


def _coloured(text: str, good: bool) -> str:
    return f"\033[{32 if good else 31}m{text}\033[0m" if sys.stdout.isatty() else text
