"""Plan a training before anything is loaded: memory, communication and schedule; refuse what cannot work.

`memory.py` computes what a process stores and sends, `shapes.py` the batches that it will get.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from lora_dist.config import Precision, Settings, TrainSettings
from lora_dist.data.sampler import DEV_SPEEDUP
from lora_dist.data.shapes import BatchShape
from lora_dist.decoding.beam_search import check_room
from lora_dist.distributed.launcher import STRATEGIES, Strategy
from lora_dist.errors import UserError
from lora_dist.model import lora
from lora_dist.model.base import reference_row
from lora_dist.model.kernels.select import kernels_for
from lora_dist.planning.activations import logits_bytes, saved_bytes
from lora_dist.planning.here import default_precision, memory_here
from lora_dist.planning.memory import Kind, Memory, Workload, bytes_sent, memory, several
from lora_dist.planning.shapes import Corpus, read_corpus, read_model_files
from lora_dist.training.captured import why_eager
from lora_dist.training.step import why_no_peak


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a training and what happens at them."""

    steps_per_epoch: int
    steps: int
    """Steps of the whole training."""
    warmup: int
    """Steps in which the learning rate rises."""
    learning_rates: list[tuple[int, float]]
    """Some steps (from 1) and their learning rates."""
    dev_evaluations: int
    """Computations of the dev loss."""
    dev_steps: int
    """Training steps in whose time they are made, about, see `DEV_SPEEDUP`."""
    checkpoints: int
    """Checkpoints written in the whole training."""
    checkpoints_kept: int
    checkpoint_bytes: int
    """Bytes of each checkpoint, without its few lines of JSON."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known in advance; --json writes it under these names."""

    model: str
    device: Kind
    precision: Precision
    """Precision of the frozen weights."""
    processes: int
    frozen: int
    """Frozen parameters, including the reference token's row."""
    trainable: int
    """Trainable parameters."""
    corpus: Corpus
    schedule: Schedule
    memory: dict[str, Memory]
    """Peak memory of a process in bytes, by strategy."""
    available: int | None
    """Bytes that a process may use; None if unknown here."""
    sent: dict[str, int]
    """Bytes that a process sends per step, by strategy."""
    notes: list[str]
    """Remarks and warnings, one sentence each."""


def make_plan(
    settings: Settings,
    processes: int,
    device: str,
    precision: Precision | None,
    available: int | None,
    together: int = 1,
) -> Plan:
    """Plan a training.

    Args:
        settings: settings of the run.
        processes: number of processes.
        device: `cpu`, `cuda`, or `auto` for what this machine has.
        precision: precision of the frozen weights; None is what the device would use.
        available: bytes that a process may use; None is what this machine has for each.
        together: runs that each process trains at the same time; memory is then an upper bound.

    Raises:
        UserError: for settings that `train` or `decode` would refuse.
    """
    cfg, sharing = settings.train, _processes_per_batch(settings.train, processes, together)
    kind: Kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    precision, name = precision or default_precision(kind), settings.model.name
    config, tokenizer = read_model_files(settings.model)
    rows = (n := config.vocab_size) + (tokenizer is None or reference_row(name, tokenizer, n) == n)
    model, kernels = _model_of_shapes(config, settings), kernels_for(torch.device(kind))

    def size(shape: BatchShape) -> int:
        return saved_bytes(model, shape, precision, kind) + logits_bytes(shape, rows, precision, kind)

    corpus = read_corpus(settings, sharing, tokenizer, config.n_positions, kernels, size)
    check_room(config.n_positions, corpus.longest_prompt, settings.decode)
    work = several(_workload(model, rows, corpus, sharing, kind, precision), together)
    strategies = _strategies(sharing) if together == 1 else {"single": None}
    return Plan(
        model=name,
        device=kind,
        precision=precision,
        processes=processes,
        frozen=work.frozen,
        trainable=work.trainable,
        corpus=corpus,
        schedule=_schedule(cfg, corpus, work.trainable // together, config.n_embd),
        memory={key: memory(each, work, captured=_captured(cfg, each, kind)) for key, each in strategies.items()},
        available=available or memory_here(kind, processes),
        sent={key: bytes_sent(strategy, work, cfg.accumulation_steps) for key, strategy in strategies.items()},
        notes=_notes(cfg, corpus, kind),
    )


def _processes_per_batch(cfg: TrainSettings, processes: int, together: int) -> int:
    """Return how many processes share a global batch: each has its own runs where several are trained together."""
    if processes < 1:
        raise UserError(f"--processes is {processes}: must be >= 1")
    sharing = processes if together == 1 else 1
    cfg.micro_batch_size(sharing)  # raises if it does not divide
    return sharing


def _captured(cfg: TrainSettings, strategy: Strategy | None, kind: Kind) -> bool:
    """Return whether the steps are captured as CUDA graphs."""
    stage, offload = (0, False) if strategy is None else (strategy.zero_stage, strategy.offload)
    return kind == "cuda" and why_eager(cfg, stage, offload=offload) is None


def _model_of_shapes(config: Any, settings: Settings) -> GPT2LMHeadModel:
    """Build GPT-2 with its adapter on the meta device, which has shapes but no values."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    lora.inject(model, settings.lora, settings.train.seed)
    return model


def _strategies(processes: int) -> dict[str, Strategy | None]:
    """Return the strategies for a number of processes by name; None is one process without a launcher."""
    if processes == 1:
        return {"single": None, **{name: strategy for name, strategy in STRATEGIES.items() if strategy.zero_stage}}
    return {**STRATEGIES}


def _workload(
    model: GPT2LMHeadModel, rows: int, corpus: Corpus, processes: int, kind: Kind, precision: Precision
) -> Workload:
    """Measure a process of the training.

    Args:
        model: GPT-2 with an adapter; only its shapes matter.
        rows: rows of the embedding, including the reference token's.
        corpus: the corpus and its largest batches.
        processes: number of processes.
        kind: kind of device.
        precision: precision of the frozen weights.
    """
    config, new_rows = model.config, rows - model.config.vocab_size
    return Workload(
        processes=processes,
        kind=kind,
        precision=precision,
        file_precision="bf16" if config.dtype == torch.bfloat16 else "fp32",
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad) + new_rows * config.n_embd,
        trainable=lora.trainable_count(model),
        layers=sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2 and not p.requires_grad),
        projection=rows * config.n_embd,
        vocabulary=config.vocab_size,
        corpus_tokens=corpus.tokens,
        activations=saved_bytes(model, corpus.largest, precision, kind),
        logits=logits_bytes(corpus.largest, rows, precision, kind),
        dev_logits=logits_bytes(corpus.largest_dev, rows, precision, kind),
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """Convert the plan to plain JSON values, with the total memory of each strategy."""
    values = asdict(plan)
    for strategy, need in plan.memory.items():
        values["memory"][strategy]["total"] = need.total
    return values


def check_memory(plan: Plan) -> None:
    """Refuse a training for which no strategy leaves enough memory.

    Raises:
        UserError: with the least memory a process would need, and how to reduce it.
    """
    strategy, least = min(((name, need.total) for name, need in plan.memory.items()), key=lambda pair: pair[1])
    if plan.available is not None and least > plan.available:
        smaller = "" if plan.precision == "bf16" else "--precision bf16, "
        raise UserError(
            f"a process needs at least {least / 2**30:.2f} GiB ({strategy}) and has {plan.available / 2**30:.2f}: try "
            f"{smaller}more --train.accumulation-steps, a smaller model, or with CPU cores fewer processes"
        )


def _schedule(cfg: TrainSettings, corpus: Corpus, trainable: int, width: int) -> Schedule:
    total, per_epoch = cfg.total_steps(corpus.examples), cfg.steps_per_epoch(corpus.examples)
    warmup = min(cfg.warmup_steps, total)
    some = sorted({1, min(warmup + 1, total), *(-(-total * quarter // 4) for quarter in (1, 2, 3, 4))})
    checkpoints, dev_evaluations = -(-total // cfg.checkpoint_steps), -(-total // per_epoch)
    return Schedule(
        steps_per_epoch=per_epoch,
        steps=total,
        warmup=warmup,
        learning_rates=[(step, cfg.learning_rate_at(step - 1, total)) for step in some],
        dev_evaluations=dev_evaluations,
        dev_steps=round(dev_evaluations * corpus.dev_examples / DEV_SPEEDUP / cfg.global_batch_size),
        checkpoints=checkpoints,
        checkpoints_kept=min(cfg.keep_checkpoints, checkpoints),
        checkpoint_bytes=12 * trainable + 4 * width,  # adapter, two moments, the reference token's row, all in fp32
    )


def _notes(cfg: TrainSettings, corpus: Corpus, kind: Kind) -> list[str]:
    found = [] if (note := why_no_peak(cfg, cfg.total_steps(corpus.examples))) is None else [note]
    if corpus.missing:
        found += [*corpus.missing, "until then lengths are those of E2E as published"]
    if cfg.refs_per_mr > 1 or cfg.gradient_checkpointing:
        found.append("activations are an upper bound: without --train.refs-per-mr and --train.gradient-checkpointing")
    if cfg.score_dev == "epoch":
        found.append("the model that each rank loads to decode the dev set after an epoch is not included")
    if kind == "cuda":
        found.append("on a GPU, CUDA's own context and the reserve of torch's allocator are not included")
        if _captured(cfg, None, kind):
            found.append("CUDA graphs reserve the activations and logits, so those of the dev set come on top")
    return found
