"""What a training would need and send, worked out before anything is loaded, and refused where it cannot work.

Where the numbers come from is told in `memory.py` (what a process holds and sends) and `lookahead.py` (what it will
meet).
"""

from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import GPT2LMHeadModel

from lora_dist.config import Precision, Settings, TrainSettings, UserError
from lora_dist.data.collate import BatchShape
from lora_dist.decoding.beam_search import check_room
from lora_dist.distributed.device import compute_precision
from lora_dist.model.base import inject, reference_row, trainable_count
from lora_dist.planning.memory import Job, Kind, Memory, Strategy, bytes_sent, logits_bytes, memory, saved_bytes
from lora_dist.planning.shapes import Corpus, read_corpus, read_model_files


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a training does, and when."""

    updates_per_epoch: int
    updates: int
    """In all."""
    warmup: int
    """Updates in which the learning rate rises."""
    learning_rates: list[tuple[int, float]]
    """Of some updates, which are counted from 1."""
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
    """Frozen numbers, the reference token's row among them."""
    trainable: int
    """Trained numbers."""
    corpus: Corpus
    schedule: Schedule
    memory: dict[Strategy, Memory]
    """Bytes of a process at its peak, under each strategy."""
    available: int | None
    """Bytes a process may take; None if that is not known here."""
    sent: dict[Strategy, int]
    """Bytes a process sends for an update."""
    notes: list[str]
    """What to know beside the numbers."""


def make_plan(
    settings: Settings, processes: int, device: str, precision: Precision | None, available: int | None
) -> Plan:
    """Plan the training of `settings`.

    Args:
        settings: of the run.
        processes: how many share the work.
        device: what they compute on: `cpu`, `cuda`, or `auto` for what this machine has.
        precision: of the frozen weights; None is what the device would use.
        available: bytes a process may take; None is what this machine has for each.

    Raises:
        UserError: for what `train` or `decode` would refuse.
    """
    if processes < 1:
        raise UserError(f"--processes is {processes}: give at least 1")
    recipe = settings.train
    recipe.micro_batch_size(processes)
    kind: Kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    precision = precision or _usual_precision(kind)
    config, tokenizer = read_model_files(settings.model)
    name, words = settings.model.name, config.vocab_size
    new_row = tokenizer is None or reference_row(name, tokenizer, words) == words
    with torch.device("meta"):  # shapes without numbers
        model = GPT2LMHeadModel(config)
    inject(model, settings.lora, recipe.seed)

    def temporary(shape: BatchShape) -> tuple[int, int]:
        return saved_bytes(model, shape, precision, kind), logits_bytes(shape, words + new_row, precision, kind)

    corpus = read_corpus(settings, processes, tokenizer, config.n_positions, lambda shape: sum(temporary(shape)))
    check_room(config.n_positions, corpus.longest_prompt, settings.decode)
    activations, logits = temporary(corpus.largest)
    _, dev_logits = temporary(corpus.largest_dev)
    job = Job(
        processes=processes,
        kind=kind,
        precision=precision,
        file_precision="bf16" if config.dtype == torch.bfloat16 else "fp32",
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad) + new_row * config.n_embd,
        trained=trainable_count(model),
        layers=sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2 and not p.requires_grad),
        projection=(words + new_row) * config.n_embd,
        vocabulary=words,
        corpus_tokens=corpus.tokens,
        activations=activations,
        logits=logits,
        dev_logits=dev_logits,
    )
    sharded: tuple[Strategy, ...] = ("zero1", "zero2", "zero3", "zero3_offload")
    strategies: tuple[Strategy, ...] = ("single" if processes == 1 else "ddp", *sharded)
    return Plan(
        model=name,
        device=kind,
        precision=precision,
        processes=processes,
        frozen=job.frozen,
        trainable=job.trained,
        corpus=corpus,
        schedule=_schedule(recipe, corpus.examples, job.trained, config.n_embd),
        memory={strategy: memory(strategy, job) for strategy in strategies},
        available=available or _memory_here(kind, processes),
        sent={strategy: bytes_sent(strategy, job, recipe.accumulation_steps) for strategy in strategies},
        notes=_notes(recipe, corpus, kind),
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values, with the total of each strategy's memory."""
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


def _schedule(recipe: TrainSettings, examples: int, trained: int, width: int) -> Schedule:
    total, per_epoch = recipe.total_updates(examples), recipe.updates_per_epoch(examples)
    warmup = min(recipe.warmup_steps, total)
    some = sorted({1, min(warmup + 1, total), *(-(-total * quarter // 4) for quarter in (1, 2, 3, 4))})
    checkpoints = -(-total // recipe.checkpoint_steps)
    return Schedule(
        updates_per_epoch=per_epoch,
        updates=total,
        warmup=warmup,
        learning_rates=[(step, recipe.learning_rate_at(step - 1, total)) for step in some],
        dev_evaluations=-(-total // per_epoch),
        checkpoints=checkpoints,
        checkpoints_kept=min(recipe.keep_checkpoints, checkpoints),
        checkpoint_bytes=12 * trained + 4 * width,  # adapter, two moments, the reference token's row, all in fp32
    )


def _notes(recipe: TrainSettings, corpus: Corpus, kind: Kind) -> list[str]:
    found, total = [], recipe.total_updates(corpus.examples)
    if recipe.warmup_steps >= total:
        found.append(
            f"the warm-up takes {recipe.warmup_steps:,} updates and the training {total:,}: the learning rate never "
            f"reaches {recipe.learning_rate:g}; lower --train.warmup-steps"
        )
    if not corpus.counted:
        found.append("the corpus or the tokenizer cannot be had here: lengths are those of E2E as published")
    if recipe.refs_per_mr > 1 or recipe.gradient_checkpointing:
        found.append("activations are those without --train.refs-per-mr and --train.gradient-checkpointing: the most")
    if kind == "cuda":
        found.append("on a GPU, CUDA's own context and the reserve of torch's allocator come on top")
    return found
