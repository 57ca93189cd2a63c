"""Settings: frozen dataclasses, the paper's two presets, and the checks that need nothing loaded.

Every field is a setting of the command line, `--section.field`. The defaults are the paper's baseline (Tables 1
and 2 of "Finetuning GPT-2 on E2E Using LoRA"); how many processes, which precision and which ZeRO stage belong to
the files in `accelerate_configs/`, not here.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "bf16"]
NgramScope = Literal["generated", "all"]


class UserError(ValueError):
    """A mistake of the user: the command line prints it as one sentence and exits with code 2."""


def _check(ok: bool, flag: str, value: object, remedy: str) -> None:
    if not ok:
        raise UserError(f"{flag} is {value}: {remedy}")


def flag(section: str, name: str) -> str:
    """A setting by the name that it has on the command line."""
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
        _check(bool(self.name), "--model.name", repr(self.name), "give a hub id such as gpt2, or a folder")
        _check(self.dropout is None or 0 <= self.dropout < 1, "--model.dropout", self.dropout, "give 0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The trained matrices (Table 1)."""

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
        _check(self.rank >= 1, "--lora.rank", self.rank, "give a whole number of at least 1")
        _check(math.isfinite(self.alpha) and self.alpha > 0, "--lora.alpha", self.alpha, "give a number above 0")
        _check(0 <= self.dropout < 1, "--lora.dropout", self.dropout, "give a probability, 0 <= p < 1")
        _check(bool(self.targets), "--lora.targets", "empty", "name at least one layer, such as c_attn")

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
        _check(
            self.limit_train is None or self.limit_train >= 1, "--data.limit-train", self.limit_train, "give at least 1"
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training recipe (Table 2)."""

    epochs: int = 5
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after N updates, and let the learning rate end there; None trains all epochs."""
    global_batch_size: int = 8
    """Examples an update, over all processes and accumulation steps together."""
    refs_per_mr: int = 1
    """References of one meaning representation that are computed behind a single copy of it; 1 computes each example
    alone. More is faster, and an update then sees fewer meaning representations."""
    accumulation_steps: int = 1
    """Forward and backward passes a process makes for one update."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer for backward and compute the layer again: less memory, more time."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW, reached after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    warmup_steps: int = 500
    """Updates over which the learning rate rises linearly from 0; then it falls linearly to 0."""
    label_smoothing: float = 0.1
    """Probability mass spread evenly over the vocabulary."""
    max_grad_norm: float | None = None
    """Clip the gradient to this L2 norm; None does not clip, as in the paper."""
    seed: int = 42
    """Seed of the initial matrices, the data order and the dropout."""
    deterministic: bool = True
    """Use deterministic CUDA kernels: the same bits in every run, for which some faster kernels are given up."""
    log_steps: int = 10
    """Updates between two lines of metrics.jsonl."""
    checkpoint_steps: int = 500
    """Updates between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    profile: bool = False
    """Write where the time of a few updates goes to OUT/profile: a table by operation, and a trace."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to this tracker, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "global_batch_size",
            "refs_per_mr",
            "accumulation_steps",
            "log_steps",
            "checkpoint_steps",
        ):
            _check(getattr(self, name) >= 1, flag("train", name), getattr(self, name), "give at least 1")
        _check(self.max_steps is None or self.max_steps >= 1, "--train.max-steps", self.max_steps, "give at least 1")
        _check(self.keep_checkpoints >= 1, "--train.keep-checkpoints", self.keep_checkpoints, "keep at least 1")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "seed"):
            value = getattr(self, name)
            _check(math.isfinite(value) and value >= 0, flag("train", name), value, "give a number of at least 0")
        _check(self.seed < 2**63, "--train.seed", self.seed, "give a number below 2**63")
        _check(0 <= self.label_smoothing < 1, "--train.label-smoothing", self.label_smoothing, "give 0 <= p < 1")
        _check(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            "--train.max-grad-norm",
            self.max_grad_norm,
            "give a number above 0",
        )

    def micro_batch_size(self, world_size: int) -> int:
        """Examples one process computes at a time.

        Raises:
            UserError: if the global batch does not divide among processes and accumulation steps.
        """
        share, rest = divmod(self.global_batch_size, world_size * self.accumulation_steps)
        if rest:
            raise UserError(
                f"--train.global-batch-size {self.global_batch_size} does not divide among {world_size} processes x "
                f"{self.accumulation_steps} accumulation steps: choose a multiple of "
                f"{world_size * self.accumulation_steps}, or other processes or --train.accumulation-steps"
            )
        return share

    def updates_per_epoch(self, num_examples: int) -> int:
        """Updates one pass over `num_examples` examples takes; the last one may be smaller."""
        return math.ceil(num_examples / self.global_batch_size)

    def total_updates(self, num_examples: int) -> int:
        """Updates of the whole training."""
        whole = self.epochs * self.updates_per_epoch(num_examples)
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def learning_rate_at(self, update: int, total: int) -> float:
        """Learning rate of update number `update` (from 0) of `total`: transformers' linear schedule with warm-up.

        A pure function of the count of updates made, so no world size, accumulation or resume can shift it.
        """
        if update < self.warmup_steps:
            return self.learning_rate * update / self.warmup_steps
        return self.learning_rate * max(0, total - update) / max(1, total - self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Beam search over the test set (Table 2, "Inference")."""

    num_beams: int = 10
    """Beams a meaning representation."""
    length_penalty: float = 0.9
    """Exponent of the length (generated tokens with end-of-text) that divides a sentence's log-probability."""
    no_repeat_ngram_size: int = 4
    """No n tokens in a row may come twice; 0 turns the ban off."""
    ngram_scope: NgramScope = "generated"
    """Where a repetition counts. generated: in the sentence alone (the LoRA authors' decoder).
    all: in prompt and sentence (transformers' generate, the seed paper's), which forbids copying 4 tokens."""
    early_stopping: Literal["true", "false", "never"] = "true"
    """When a search ends. true: with as many finished sentences as beams. false: when the best running beam
    cannot beat the worst finished one at its present length. never: not at any later length either."""
    max_new_tokens: int = 64
    """Longest sentence, in tokens."""
    precision: Precision = "fp32"
    """Number format of the weights while decoding."""
    num_return: int = 1
    """Sentences to keep of each meaning representation, best first; outputs.jsonl lists those after the first."""
    batch_tokens: int | None = None
    """Tokens in memory together, the prompt's and those of all its beams, for the meaning representations of one
    batch; None takes what suits the device and fits into a quarter of its free memory."""
    limit: int | None = None
    """Decode the first N meaning representations of the test set only; None decodes all 630."""

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens", "num_return"):
            _check(getattr(self, name) >= 1, flag("decode", name), getattr(self, name), "give at least 1")
        _check(
            self.num_return <= self.num_beams,
            "--decode.num-return",
            self.num_return,
            f"give at most --decode.num-beams, {self.num_beams}",
        )
        _check(
            self.batch_tokens is None or self.batch_tokens >= 1,
            "--decode.batch-tokens",
            self.batch_tokens,
            "give at least 1",
        )
        _check(math.isfinite(self.length_penalty), "--decode.length-penalty", self.length_penalty, "give a number")
        _check(
            self.no_repeat_ngram_size >= 0,
            "--decode.no-repeat-ngram-size",
            self.no_repeat_ngram_size,
            "give 0 (off) or more",
        )
        _check(self.limit is None or self.limit >= 1, "--decode.limit", self.limit, "give at least 1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the result of a run."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)

    def sections(self) -> "Settings":
        """These five alone; a command that takes more is a subclass."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})


BASELINE = Settings()
IMPROVED = Settings(
    lora=LoraSettings(rank=16, alpha=32.0, dropout=0.1, targets=("c_attn", "c_proj", "c_fc"), init="gaussian")
)
PRESETS = {"baseline": BASELINE, "improved": IMPROVED}
