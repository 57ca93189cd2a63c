"""What a training would need and communicate, computed before anything is loaded, and refused where it cannot work.

`memory.py` has what a process holds and sends, `shapes.py` the batches it will meet.
"""

from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import GPT2LMHeadModel

from lora_dist.config import Precision, Settings, TrainSettings
from lora_dist.data.collate import BatchShape
from lora_dist.decoding.beam_search import check_room
from lora_dist.distributed.device import compute_precision
from lora_dist.distributed.launcher import STRATEGIES, Strategy
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.base import reference_row
from lora_dist.model.kernels.select import kernels_for
from lora_dist.planning.memory import Kind, Memory, Workload, bytes_sent, logits_bytes, memory, saved_bytes
from lora_dist.planning.shapes import Corpus, read_corpus, read_model_files


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a training does, and when."""

    steps_per_epoch: int
    steps: int
    """In all."""
    warmup: int
    """Steps in which the learning rate rises."""
    learning_rates: list[tuple[int, float]]
    """At some steps, which are counted from 1."""
    dev_evaluations: int
    checkpoints: int
    """Written in all."""
    checkpoints_kept: int
    checkpoint_bytes: int
    """Of each, without its few lines of JSON."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is known in advance; --json writes it under these names."""

    model: str
    device: Kind
    precision: Precision
    """Of the frozen weights."""
    processes: int
    frozen: int
    """Frozen parameters, including the reference token's row."""
    trainable: int
    """Trainable parameters."""
    corpus: Corpus
    schedule: Schedule
    memory: dict[str, Memory]
    """Bytes of a process at its peak, by strategy."""
    available: int | None
    """Bytes a process may use; None if that is not known here."""
    sent: dict[str, int]
    """Bytes a process sends per step, by strategy."""
    notes: list[str]
    """What else to know."""


def make_plan(
    settings: Settings, processes: int, device: str, precision: Precision | None, available: int | None
) -> Plan:
    """Plan the training of `settings`.

    Args:
        settings: of the run.
        processes: how many share the work.
        device: what they compute on: `cpu`, `cuda`, or `auto` for what this machine has.
        precision: of the frozen weights; None is what the device would use.
        available: bytes a process may use; None is what this machine has for each.

    Raises:
        UserError: for what `train` or `decode` would refuse.
    """
    if processes < 1:
        raise UserError(f"--processes is {processes}: must be >= 1")
    cfg = settings.train
    cfg.micro_batch_size(processes)
    kind: Kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    precision = precision or _usual_precision(kind)
    config, tokenizer = read_model_files(settings.model)
    name, vocabulary = settings.model.name, config.vocab_size
    new_row = tokenizer is None or reference_row(name, tokenizer, vocabulary) == vocabulary
    with torch.device("meta"):  # shapes without values
        model = GPT2LMHeadModel(config)
    lora.inject(model, settings.lora, cfg.seed)

    def temporary(shape: BatchShape) -> tuple[int, int]:
        return saved_bytes(model, shape, precision, kind), logits_bytes(shape, vocabulary + new_row, precision, kind)

    corpus = read_corpus(
        settings,
        processes,
        tokenizer,
        config.n_positions,
        kernels_for(torch.device(kind)).SHAPE_STEP,
        lambda shape: sum(temporary(shape)),
    )
    check_room(config.n_positions, corpus.longest_prompt, settings.decode)
    activations, logits = temporary(corpus.largest)
    _, dev_logits = temporary(corpus.largest_dev)
    work = Workload(
        processes=processes,
        kind=kind,
        precision=precision,
        file_precision="bf16" if config.dtype == torch.bfloat16 else "fp32",
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad) + new_row * config.n_embd,
        trainable=lora.trainable_count(model),
        layers=sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2 and not p.requires_grad),
        projection=(vocabulary + new_row) * config.n_embd,
        vocabulary=vocabulary,
        corpus_tokens=corpus.tokens,
        activations=activations,
        logits=logits,
        dev_logits=dev_logits,
    )
    strategies: dict[str, Strategy | None] = {**STRATEGIES}
    if processes == 1:
        strategies = {"single": None, **{name: s for name, s in STRATEGIES.items() if s.zero_stage}}
    return Plan(
        model=name,
        device=kind,
        precision=precision,
        processes=processes,
        frozen=work.frozen,
        trainable=work.trainable,
        corpus=corpus,
        schedule=_schedule(cfg, corpus.examples, work.trainable, config.n_embd),
        memory={key: memory(strategy, work) for key, strategy in strategies.items()},
        available=available or _memory_here(kind, processes),
        sent={key: bytes_sent(strategy, work, cfg.accumulation_steps) for key, strategy in strategies.items()},
        notes=_notes(cfg, corpus, kind),
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values, with the total memory of each strategy."""
    values = asdict(plan)
    for strategy, need in plan.memory.items():
        values["memory"][strategy]["total"] = need.total
    return values


def check_memory(plan: Plan) -> None:
    """Refuse a training for which no strategy leaves enough memory.

    Raises:
        UserError: with the least it would need, and how to need less.
    """
    strategy, least = min(((name, need.total) for name, need in plan.memory.items()), key=lambda pair: pair[1])
    if plan.available is not None and least > plan.available:
        smaller = "" if plan.precision == "bf16" else "--precision bf16, "
        raise UserError(
            f"a process needs {least / 2**30:.2f} GiB at least ({strategy}) and has {plan.available / 2**30:.2f}: try "
            f"{smaller}more --train.accumulation-steps, a smaller model, or with CPU cores fewer processes"
        )


def _usual_precision(kind: Kind) -> Precision:
    there = kind == "cpu" or torch.cuda.is_available()
    return compute_precision(torch.device(kind)) if there else "bf16"


def _memory_here(kind: Kind, processes: int) -> int | None:
    """Bytes this machine has for each process: a GPU each, or a share of the memory."""
    if kind == "cpu":
        return int(psutil.virtual_memory().total // processes)
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _schedule(cfg: TrainSettings, examples: int, trainable: int, width: int) -> Schedule:
    total, per_epoch = cfg.total_steps(examples), cfg.steps_per_epoch(examples)
    warmup = min(cfg.warmup_steps, total)
    some = sorted({1, min(warmup + 1, total), *(-(-total * quarter // 4) for quarter in (1, 2, 3, 4))})
    checkpoints = -(-total // cfg.checkpoint_steps)
    return Schedule(
        steps_per_epoch=per_epoch,
        steps=total,
        warmup=warmup,
        learning_rates=[(step, cfg.learning_rate_at(step - 1, total)) for step in some],
        dev_evaluations=-(-total // per_epoch),
        checkpoints=checkpoints,
        checkpoints_kept=min(cfg.keep_checkpoints, checkpoints),
        checkpoint_bytes=12 * trainable + 4 * width,  # adapter, two moments, the reference token's row, all in fp32
    )


def _notes(cfg: TrainSettings, corpus: Corpus, kind: Kind) -> list[str]:
    found, total = [], cfg.total_steps(corpus.examples)
    if cfg.warmup_steps >= total:
        found.append(
            f"the warm-up takes {cfg.warmup_steps:,} steps and the training {total:,}: the learning rate never "
            f"reaches {cfg.learning_rate:g}; lower --train.warmup-steps"
        )
    if not corpus.counted:
        found.append("the corpus or the tokenizer is unavailable here: lengths are those of E2E as published")
    if cfg.refs_per_mr > 1 or cfg.gradient_checkpointing:
        found.append("activations are those without --train.refs-per-mr and --train.gradient-checkpointing: the most")
    if kind == "cuda":
        found.append("on a GPU, CUDA's own context and the reserve of torch's allocator come on top")
    return found
