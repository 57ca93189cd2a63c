"""Examples per second of training, compared with the seed paper's way, PEFT with transformers' Trainer, and loralib.

All run on one machine with the same checkpoint, adapter, examples, global batches and AdamW. The rows are

- the seed paper's: PEFT and Trainer, padded to 128 tokens, the loss on everything but padding, fp32;
- PEFT and Trainer: padded to the longest example of a batch, the loss on the reference; in bf16 both with fp32 weights
  under autocast and with frozen weights in bf16, and on a GPU also with torch.compile;
- loralib: the LoRA authors' layers in a plain loop, padded to 128 tokens, the loss on the reference;
- ours: the steps of `lora-dist train`, on a GPU also without CUDA graphs ("eager");
- ours, N together: those of N runs of a `lora-dist sweep`;
- ours, N references per MR: the same with `--train.refs-per-mr N`, which has other batches.

GPT-2's own dropout is off for all unless `--model.dropout` is given; LoRA's is the preset's. A fused `c_attn` has one
pair of matrices everywhere. The losses show that all programs compute the same: they agree with `--lora.dropout 0`.
With dropout, each program draws its own masks. Ours draws the same ones again when the steps are repeated to be timed,
which lowers its loss a little.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from lora_dist.bench.machine import (
    Measurement,
    bench_device,
    choose,
    matmul_ceiling,
    measure_apart,
    precisions,
    use_one_gpu,
)
from lora_dist.bench.models import save_model
from lora_dist.bench.rows import Row
from lora_dist.bench.stopwatch import StepTimes
from lora_dist.bench.train_programs import FIXED_LENGTH, NumberFormat, TrainInputs, loralib, ours, peft_trainer
from lora_dist.bench.work import count_tokens, necessary_work
from lora_dist.config import Precision, Settings
from lora_dist.data.sampler import global_batch, training_order
from lora_dist.data.token_cache import load_corpus
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.packages import is_installed
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.adapter import save_adapter
from lora_dist.model.base import identify, load_tokenizer

CPU_STEPS, GPU_STEPS = 3, 50
CPU_ROUNDS = 2
"""Times that each program is started on a CPU; on a GPU it makes several rounds in one process, see `Stopwatch`."""

REFS_PER_MR = 8
"""References that share an MR in the last program, unless the settings have more than 1."""

SEED, PEFT = "the seed paper's", "PEFT and Trainer"

FORMATS: dict[NumberFormat, tuple[str, Precision]] = {
    "fp32": ("fp32", "fp32"),
    "autocast": ("bf16 autocast", "bf16"),
    "bf16": ("bf16 weights", "bf16"),
}
"""Name of a peer's number format in the rows, and our precision that it is compared with."""


@dataclass(frozen=True)
class Program:
    """One way to make some steps."""

    run: Callable[..., tuple[float, StepTimes]]
    """Returns the seconds of the steps, and what else was measured."""
    inputs: TrainInputs
    arguments: tuple[object, ...]
    """Further arguments of `run`."""
    precision: Precision
    together: int = 1
    """Runs that train together, each with as many examples as `inputs`."""


def bench_train(
    settings: Settings,
    shape: str | None,
    steps: int | None,
    threads: int,
    chosen: Sequence[str],
    together: Sequence[int] = (),
) -> list[Row]:
    """Measure all programs, which take turns in separate processes; return the best of several rounds.

    Args:
        settings: settings of the training; the learning rate is the peak throughout.
        shape: a key of `models.SHAPES` for random weights of that shape, or None for the model's own.
        steps: steps to time, after the same steps as a warm-up; None is `CPU_STEPS` or `GPU_STEPS`.
        threads: CPU threads of each process.
        chosen: beginnings of the names of the programs to measure; none is all of them.
        together: numbers of runs that train together, each a program.

    Raises:
        UserError: if model or data cannot be read, or there are too few examples.
    """
    use_one_gpu()
    on_gpu = bench_device().type == "cuda"
    steps = steps or (GPU_STEPS if on_gpu else CPU_STEPS)
    tokenizer, cfg = load_tokenizer(settings.model), replace(settings.train, warmup_steps=0, accumulation_steps=1)
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        folder, adapter = Path(name, "model"), Path(name, "adapter")
        gpt2 = save_model(settings.model, shape, folder)
        lora.inject(gpt2, settings.lora, cfg.seed)
        state = {key: parameter.detach() for key, parameter in lora.parameters(gpt2).items()}
        adapter.mkdir()
        save_adapter(adapter, state, settings.lora, identify(gpt2, tokenizer, str(folder)))
        examples = load_corpus(settings.data, tokenizer, gpt2.config.n_positions).train
        base = replace(settings.model, name=str(folder))
        exact, shared = (
            replace(settings, model=base, train=replace(cfg, refs_per_mr=refs))
            for refs in (1, cfg.refs_per_mr if cfg.refs_per_mr > 1 else REFS_PER_MR)
        )
        one, several = (_inputs(each, adapter, examples, gpt2, steps) for each in (exact, shared))
        every = _programs(one, several, together, on_gpu=on_gpu)
        programs = choose(every, chosen)
        found = _measure_all(programs, threads, 1 if on_gpu else CPU_ROUNDS)
    return _rows(programs, found, gpt2, threads)


def _inputs(
    settings: Settings, adapter: Path, examples: TokenizedExamples, gpt2: GPT2LMHeadModel, steps: int
) -> TrainInputs:
    """Choose the consecutive `steps` whose mean work is closest to that of the corpus, so that they represent it."""
    cfg = settings.train
    size = cfg.global_batch_size
    whole = len(examples) // size
    if not 1 <= steps <= whole:
        raise UserError(f"--updates is {steps}: must be 1 to {whole}, as the corpus has {len(examples)} examples")
    order = training_order(examples.mrs, cfg.seed, 0, cfg.refs_per_mr)
    batches = [global_batch(order, number, size) for number in range(whole)]
    work = np.array([necessary_work(gpt2, count_tokens(examples, [batch], cfg.refs_per_mr > 1)) for batch in batches])
    means = np.convolve(work, np.full(steps, 1 / steps), "valid")
    first = int(np.abs(means - work.mean()).argmin())
    return TrainInputs(settings, adapter, examples, range(first, first + steps), gpt2.config.eos_token_id)


def _programs(exact: TrainInputs, shared: TrainInputs, together: Sequence[int], *, on_gpu: bool) -> dict[str, Program]:
    """Return the programs by name: `exact` has one reference per MR, `shared` several."""
    *_, best = measured = precisions()
    found: dict[str, Program] = {}
    if is_installed("peft"):
        found[f"{SEED}, fp32"] = Program(peft_trainer, exact, ("fp32", FIXED_LENGTH, True), "fp32")
        for number_format, (name, precision) in FORMATS.items():
            found[f"{PEFT}, {name}"] = Program(peft_trainer, exact, (number_format, None, False), precision)
        if on_gpu:
            found[f"{PEFT} with torch.compile, bf16 weights"] = Program(
                peft_trainer, exact, ("bf16", None, False, True), "bf16"
            )
    if is_installed("loralib"):
        for number_format in ("fp32", "autocast"):
            name, precision = FORMATS[number_format]
            found[f"loralib, {name}"] = Program(loralib, exact, (number_format,), precision)
    for precision in measured:
        found[f"ours, {precision}"] = Program(ours, exact, (precision, "auto"), precision)
        if on_gpu:
            found[f"ours, eager, {precision}"] = Program(ours, exact, (precision, "off"), precision)
    for number in together:
        found[f"ours, {number} together, {best}"] = Program(ours, exact, (best, "auto", number), best, number)
    refs = shared.settings.train.refs_per_mr
    found[f"ours, {refs} references per MR, {best}"] = Program(ours, shared, (best, "auto"), best)
    return {name: program for name, program in found.items() if program.precision in measured}


def _measure_all(programs: Mapping[str, Program], threads: int, rounds: int) -> dict[str, Measurement]:
    """Measure each program and return its best measurement."""
    best: dict[str, Measurement] = {}
    turns = [(name, program) for _ in range(rounds) for name, program in programs.items()]
    for name, program in tqdm(turns, desc="bench train", unit="program", disable=None):
        measured = measure_apart(program.run, program.inputs, *program.arguments, threads=threads)
        if name not in best or measured.seconds < best[name].seconds:
            best[name] = measured
    return best


def _rows(
    programs: Mapping[str, Program], found: Mapping[str, Measurement], gpt2: GPT2LMHeadModel, threads: int
) -> list[Row]:
    ceilings = {name: matmul_ceiling(name, threads) for name in precisions()}
    rates, shares, peaks = dict[str, float](), dict[str, float](), dict[str, float]()
    for name, program in programs.items():
        inputs, measured = program.inputs, found[name]
        batches = inputs.batches()
        counts = count_tokens(inputs.examples, batches, inputs.settings.train.refs_per_mr > 1)
        rates[name] = program.together * sum(map(len, batches)) / measured.seconds
        shares[name] = program.together * necessary_work(gpt2, counts) / measured.seconds / ceilings[program.precision]
        peaks[name] = measured.peak_bytes / 2**30
    times: dict[str, StepTimes] = {name: measured.result for name, measured in found.items()}
    steps = len(next(iter(programs.values())).inputs.steps)

    def compared(values: Mapping[str, float | None], what: str, unit: str, *, more_is_better: bool) -> list[Row]:
        rows = []
        for name, value in values.items():
            own = values.get(f"ours, {programs[name].precision}")
            if value is not None:
                ratio = None if not own or not value else own / value if more_is_better else value / own
                rows.append(Row(name + what, round(value, 3), unit, None if ratio is None else round(ratio, 3)))
        return rows

    def per_step(part: Callable[[StepTimes], float | None], what: str, unit: str = "") -> list[Row]:
        values = {name: None if (whole := part(time)) is None else whole / steps for name, time in times.items()}
        return compared(values, what, unit, more_is_better=False)

    return [
        *compared(rates, "", "examples/s", more_is_better=True),
        *_gains(rates),
        *per_step(lambda time: 1e3 * time.seconds, ": step", "ms"),
        *_per_adapter(programs, times, steps),
        *per_step(lambda time: None if time.busy_seconds is None else 1e3 * time.busy_seconds, ": GPU busy", "ms/step"),
        *per_step(lambda time: time.kernels, ": kernels", "per step"),
        *per_step(lambda time: time.launches, ": launches", "per step"),
        *compared(shares, ": share of the matmul ceiling", "", more_is_better=True),
        *compared(peaks, ": peak memory", "GiB", more_is_better=False),
        *compared({n: time.loss for n, time in times.items()}, ": mean loss", "nats/token", more_is_better=False),
    ]


def _per_adapter(programs: Mapping[str, Program], times: Mapping[str, StepTimes], steps: int) -> list[Row]:
    """Return the time of a step for each of several runs that train together, and how often it fits in one's alone."""
    rows = []
    for name, program in ((name, program) for name, program in programs.items() if program.together > 1):
        own, alone = times[name].seconds / program.together, times.get(f"ours, {program.precision}")
        ratio = None if alone is None else round(alone.seconds / own, 3)
        rows.append(Row(f"{name}: step and adapter", round(1e3 * own / steps, 3), "ms", ratio))
    return rows


def _gains(rates: Mapping[str, float]) -> list[Row]:
    """Compare our rates with the best rate of each peer, in whatever precision each is fastest."""
    rows = []
    own = [name for name in rates if name.startswith("ours")]
    mine = [n for n in own if "together" not in n][-2:] + [n for n in own if "together" in n]
    for peer, times in ((SEED, "the seed paper's"), (PEFT, "PEFT's best")):
        best = max((rate for name, rate in rates.items() if name.startswith(peer)), default=None)
        if best is not None:
            rows += [
                Row(f"{name}: over {times}", round(r := rates[name] / best, 3), "times", round(r, 3)) for name in mine
            ]
    return rows
