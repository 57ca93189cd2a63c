"""Settings: frozen dataclasses, the presets, and the checks that need nothing loaded.

Every field is a setting of the command line, `--section.field`. The defaults are the paper's baseline (Tables 1
and 2 of "Finetuning GPT-2 on E2E Using LoRA"); how many processes, which precision and which ZeRO stage belong to
the files in `accelerate_configs/`, not here.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora_dist.errors import UserError

Precision = Literal["fp32", "bf16"]
NgramScope = Literal["generated", "all"]


def _require(ok: bool, flag: str, value: object, remedy: str) -> None:
    if not ok:
        raise UserError(f"{flag} is {value}: {remedy}")


def _require_at_least_1(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value >= 1, flag(section, name), value, "must be >= 1")


def flag(section: str, name: str) -> str:
    """The name of a setting on the command line."""
    return f"--{section}.{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The frozen GPT-2."""

    name: str = "gpt2"
    """Hub id (gpt2, gpt2-medium) or path of a GPT-2 checkpoint."""
    dropout: float | None = 0.0
    """GPT-2's own dropout probability while training. The LoRA authors' model has none, and learns E2E better so;
    None keeps the checkpoint's (0.1 for gpt2)."""

    def __post_init__(self) -> None:
        _require(bool(self.name), "--model.name", repr(self.name), "give a hub id such as gpt2, or a folder")
        _require(self.dropout is None or 0 <= self.dropout < 1, "--model.dropout", self.dropout, "must be 0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The adapter's matrices (Table 1)."""

    rank: int = 4
    """Rank r: rows of A, columns of B."""
    alpha: float = 32.0
    """Scale: the product B A x is multiplied by alpha / rank."""
    dropout: float = 0.1
    """Dropout probability on the input of A while training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Names of the layers that get a pair of matrices; c_proj names attention's and the MLP's."""
    init: Literal["original", "gaussian"] = "original"
    """original: A normal times 1/r, B zero. gaussian: both normal times 1/r."""

    def __post_init__(self) -> None:
        _require_at_least_1("lora", self, "rank")
        _require(math.isfinite(self.alpha) and self.alpha > 0, "--lora.alpha", self.alpha, "must be > 0")
        _require(0 <= self.dropout < 1, "--lora.dropout", self.dropout, "must be 0 <= p < 1")
        _require(bool(self.targets), "--lora.targets", "empty", "name at least one layer, such as c_attn")

    @property
    def scaling(self) -> float:
        """Alpha / rank, the factor of B A x (Hu et al. 2021, section 4.1)."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The E2E NLG Challenge corpus."""

    dir: Path | None = None
    """Folder with trainset.csv, devset.csv and testset_w_refs.csv; None reads tuetschek/e2e_nlg from the hub."""
    limit_train: int | None = None
    """Train on the first N examples only; None takes all of them."""

    def __post_init__(self) -> None:
        _require_at_least_1("data", self, "limit_train")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training hyperparameters (Table 2)."""

    epochs: int = 5
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after N optimizer steps, and let the learning rate end there; None trains all epochs."""
    global_batch_size: int = 8
    """Examples per optimizer step, over all processes and accumulation steps together."""
    refs_per_mr: int = 1
    """References of one meaning representation (MR) that are computed behind a single copy of it; 1 computes each
    example separately. More is faster, and a step then sees fewer MRs."""
    accumulation_steps: int = 1
    """Forward and backward passes per process and optimizer step."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer for backward and compute the layer again: less memory, more time."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW, reached after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    warmup_steps: int = 500
    """Optimizer steps over which the learning rate rises linearly from 0; then it falls linearly to 0."""
    label_smoothing: float = 0.1
    """Probability mass spread evenly over the vocabulary."""
    max_grad_norm: float | None = None
    """Clip the gradient to this L2 norm; None does not clip, as in the paper."""
    seed: int = 42
    """Seed of the initial matrices, the data order and the dropout."""
    deterministic: bool = True
    """Use deterministic CUDA kernels: the same bits in every run, for which some faster kernels are given up."""
    log_steps: int = 10
    """Optimizer steps between two lines of metrics.jsonl."""
    checkpoint_steps: int = 500
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    profile: bool = False
    """Write where the time of a few steps goes to OUT/profile: a table by operation, and a trace."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to this tracker, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        counts = ("epochs", "max_steps", "global_batch_size", "refs_per_mr", "accumulation_steps")
        _require_at_least_1("train", self, *counts, "log_steps", "checkpoint_steps", "keep_checkpoints")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "seed"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, flag("train", name), value, "must be >= 0")
        _require(self.seed < 2**63, "--train.seed", self.seed, "must be < 2**63")
        smoothing, norm = self.label_smoothing, self.max_grad_norm
        _require(0 <= smoothing < 1, "--train.label-smoothing", smoothing, "must be 0 <= p < 1")
        _require(norm is None or norm > 0, "--train.max-grad-norm", norm, "must be > 0")

    def micro_batch_size(self, world_size: int) -> int:
        """Examples per forward pass of one process.

        Raises:
            UserError: if the global batch does not divide among processes and accumulation steps.
        """
        size, rest = divmod(self.global_batch_size, world_size * self.accumulation_steps)
        if rest:
            raise UserError(
                f"--train.global-batch-size is {self.global_batch_size}: it does not divide among {world_size} "
                f"processes x {self.accumulation_steps} accumulation steps; choose a multiple of "
                f"{world_size * self.accumulation_steps}, or other processes or --train.accumulation-steps"
            )
        return size

    def steps_per_epoch(self, num_examples: int) -> int:
        """Optimizer steps of one pass over `num_examples` examples; the last one may have fewer examples."""
        return math.ceil(num_examples / self.global_batch_size)

    def total_steps(self, num_examples: int) -> int:
        """Optimizer steps of the whole training."""
        whole = self.epochs * self.steps_per_epoch(num_examples)
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Learning rate of step number `step` (from 0) of `total`: transformers' linear schedule with warm-up.

        A pure function of the steps made, so no world size, accumulation or resume can shift it.
        """
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        return self.learning_rate * max(0, total - step) / max(1, total - self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Beam search over the test set (Table 2, "Inference")."""

    num_beams: int = 10
    """Beams per meaning representation (MR)."""
    length_penalty: float = 0.9
    """Exponent of the length (generated tokens with end-of-text) that divides a sentence's log-probability."""
    no_repeat_ngram_size: int = 4
    """No n tokens in a row may occur twice; 0 turns the ban off."""
    ngram_scope: NgramScope = "generated"
    """Where a repetition counts. generated: in the sentence only (the LoRA authors' decoder).
    all: in prompt and sentence (transformers' generate, the seed paper's), which forbids copying 4 tokens."""
    early_stopping: Literal["true", "false", "never"] = "true"
    """When a search ends. true: with as many finished sentences as beams. false: when the best running beam
    cannot beat the worst finished one at its present length. never: not at any later length either."""
    max_new_tokens: int = 64
    """Longest sentence, in tokens."""
    precision: Precision = "fp32"
    """Number format of the weights."""
    num_return: int = 1
    """Sentences to keep per MR, best first; outputs.jsonl lists those after the first."""
    batch_tokens: int | None = None
    """Tokens of one chunk, the prompts' and those of all their beams; None takes what suits the device and fits into a
    quarter of its free memory."""
    limit: int | None = None
    """Decode the first N MRs of the test set only; None decodes all 630."""

    def __post_init__(self) -> None:
        _require_at_least_1("decode", self, "num_beams", "max_new_tokens", "num_return", "batch_tokens", "limit")
        beams, kept, penalty, size = self.num_beams, self.num_return, self.length_penalty, self.no_repeat_ngram_size
        _require(kept <= beams, "--decode.num-return", kept, f"must be <= --decode.num-beams, {beams}")
        _require(math.isfinite(penalty), "--decode.length-penalty", penalty, "must be a finite number")
        _require(size >= 0, "--decode.no-repeat-ngram-size", size, "must be >= 0 (0 is off)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the result of a run."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)

    def sections(self) -> "Settings":
        """Only these five; a command that takes more is a subclass."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})


@dataclass(frozen=True)
class Preset:
    """A published configuration, with what `--help` says of it."""

    settings: Settings
    summary: str
    column: str
    """Of Table 1 in a report."""
    trainable: str
    """Trainable parameters as published."""


BASELINE = Settings()
IMPROVED = Settings(lora=LoraSettings(rank=16, targets=("c_attn", "c_proj", "c_fc"), init="gaussian"))
_BASELINE = "Table 1 of the paper: rank 4, c_attn, original initialisation"
_IMPROVED = "Table 1 of the paper: rank 16, c_attn, c_proj and c_fc, Gaussian initialisation"
PRESETS = {
    "baseline": Preset(BASELINE, _BASELINE, "Baseline, paper", "0.15M on Small"),
    "improved": Preset(IMPROVED, _IMPROVED, "Improved, paper", "2.36M on Small"),
}
"""Every preset by name: parsing, help, Table 1 and `reproduce` derive from it."""
