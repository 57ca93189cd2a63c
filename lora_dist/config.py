"""Settings: frozen dataclasses and the checks that need nothing loaded.

Every field is a setting of the command line, `--section.field`, and its docstring is the help text. The defaults are
the paper's baseline (Tables 1 and 2). Processes, precision and ZeRO stage are set in `accelerate_configs/`, not here.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora_dist.errors import UserError

Precision = Literal["fp32", "bf16"]
NgramScope = Literal["generated", "all"]
Init = Literal["original", "gaussian", "kaiming"]
Linearization = Literal["csv", "authors"]


def _require(ok: bool, flag: str, value: object, remedy: str) -> None:
    if not ok:
        raise UserError(f"{flag} is {value}: {remedy}")


def _require_at_least_1(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value >= 1, flag(section, name), value, "must be >= 1")


def flag(section: str, name: str) -> str:
    """Return the command-line name of a setting."""
    return f"--{section}.{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The frozen GPT-2."""

    name: str = "gpt2"
    """Hub id (gpt2, gpt2-medium) or path of a GPT-2 checkpoint."""
    dropout: float | None = 0.0
    """GPT-2's dropout probability in training, 0 as in the LoRA authors' model; None keeps the checkpoint's (0.1)."""

    def __post_init__(self) -> None:
        _require(bool(self.name), "--model.name", repr(self.name), "give a hub id such as gpt2, or a folder")
        _require(self.dropout is None or 0 <= self.dropout < 1, "--model.dropout", self.dropout, "must be 0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The LoRA adapter (Table 1)."""

    rank: int = 4
    """Rank r: A has r rows, B has r columns."""
    alpha: float = 32.0
    """Scale: the product B A x is multiplied by alpha / rank, with --lora.rslora by alpha / sqrt(rank)."""
    dropout: float = 0.1
    """Dropout probability on the input of A during training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers that get an adapter: c_proj matches attention's and the MLP's, mlp.c_proj only the MLP's. c_attn is one
    pair for queries, keys and values together; c_attn.q c_attn.v is a pair for each of these parts, as the authors'."""
    init: Init = "original"
    """original: A is drawn from a standard normal and divided by r, B is zero. gaussian: both are drawn so. kaiming: A
    is Kaiming-uniform with a = sqrt(5), B is zero, as in the LoRA authors' code and in PEFT."""
    rslora: bool = False
    """Rank-stabilised LoRA: scale by alpha / sqrt(rank)."""
    dora: bool = False
    """Weight-decomposed LoRA: also train the norm of each column of the adapted weights."""

    def __post_init__(self) -> None:
        _require_at_least_1("lora", self, "rank")
        _require(math.isfinite(self.alpha) and self.alpha > 0, "--lora.alpha", self.alpha, "must be > 0")
        _require(0 <= self.dropout < 1, "--lora.dropout", self.dropout, "must be 0 <= p < 1")
        _require(bool(self.targets), "--lora.targets", "empty", "name at least one layer, such as c_attn")
        names, parts, whole = " ".join(self.targets), len(self.parts), "must be whole layers, such as c_attn"
        _require(not (self.dora and parts), "--lora.targets", names, f"{whole}, with --lora.dora")
        _require(parts in (0, len(self.targets)), "--lora.targets", names, f"{whole}, or only parts such as c_attn.q")

    @property
    def scaling(self) -> float:
        """The factor of B A x (Hu et al. 2021, section 4.1; with rslora Kalajdzievski 2023, equation 8)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def parts(self) -> tuple[int, ...]:
        """Parts of c_attn that get a pair each: 0 is q, 1 is k, 2 is v; none where whole layers get one."""
        return tuple(number for number, part in enumerate("qkv") if f"c_attn.{part}" in self.targets)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The E2E NLG Challenge corpus."""

    dir: Path | None = None
    """Folder with trainset.csv, devset.csv and testset_w_refs.csv; None reads tuetschek/e2e_nlg from the hub."""
    corpus: Literal["e2e", "cleaned"] = "e2e"
    """e2e: those files, of E2E or of data in its format. cleaned: the cleaned corpus (Dusek et al. 2019), its files."""
    limit_train: int | None = None
    """Train on the first N examples only; None uses all of them."""
    limit_dev: int | None = None
    """Compute the dev loss on the first N examples only; None uses all. --train.score-dev decodes the whole dev set."""
    linearization: Linearization = "csv"
    """MRs in prompts. csv: name[The Eagle], eatType[pub]. authors: the LoRA authors' name : The Eagle | Type : pub."""

    def __post_init__(self) -> None:
        _require_at_least_1("data", self, "limit_train", "limit_dev")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training hyperparameters (Table 2)."""

    epochs: int = 5
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after N optimizer steps, with the learning-rate schedule ending there; None trains all epochs."""
    global_batch_size: int = 8
    """Examples per optimizer step, over all processes and accumulation steps together."""
    refs_per_mr: int = 1
    """References per copy of their meaning representation (MR); more is faster, but a step has fewer different MRs."""
    accumulation_steps: int = 1
    """Micro-batches (forward and backward passes) per process and optimizer step."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the layer in backward: less memory, more time."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """auto: on a GPU, forward and backward pass are a CUDA graph in one process, DDP, ZeRO-1 and ZeRO-2. off: no."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW, reached after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    lora_plus_ratio: float = 1.0
    """LoRA+: learning rate of B (and of DoRA's norms) relative to that of A; 1 is plain LoRA, the authors advise 16."""
    warmup_steps: int = 500
    """Optimizer steps over which the learning rate rises linearly from 0; then it falls linearly to 0."""
    label_smoothing: float = 0.1
    """Probability mass of the target that is spread evenly over the vocabulary."""
    max_grad_norm: float | None = None
    """Clip the gradient to this L2 norm; None does not clip, as in the paper."""
    seed: int = 42
    """Seed of the initial matrices, the data order and the dropout."""
    deterministic: bool = True
    """Use deterministic CUDA kernels: every run gives the same bits, but some faster kernels are unavailable."""
    log_steps: int = 10
    """Optimizer steps between two lines of metrics.jsonl."""
    checkpoint_steps: int = 500
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    profile: bool = False
    """Profile a few steps and write the time per operation, as a table and as a trace, to OUT/profile."""
    score_dev: Literal["off", "epoch"] = "off"
    """epoch: after each epoch, decode the dev set as the test set will be, log its scores, and keep the adapter."""
    select: Literal["last", "best"] = "last"
    """Epoch whose adapter is the result: the last, or the one with the best dev BLEU (see --train.score-dev)."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Experiment tracker to log to in addition to metrics.jsonl."""

    def __post_init__(self) -> None:
        sizes = ("epochs", "max_steps", "global_batch_size", "refs_per_mr", "accumulation_steps")
        _require_at_least_1("train", self, *sizes, "log_steps", "checkpoint_steps", "keep_checkpoints")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "seed"):
            _require(0 <= (value := getattr(self, name)) < math.inf, flag("train", name), value, "must be >= 0")
        _require(self.seed < 2**63, "--train.seed", self.seed, "must be < 2**63")
        _require(0 <= (p := self.label_smoothing) < 1, "--train.label-smoothing", p, "must be 0 <= p < 1")
        _require(0 < (ratio := self.lora_plus_ratio) < math.inf, "--train.lora-plus-ratio", ratio, "must be > 0")
        _require((norm := self.max_grad_norm) is None or norm > 0, "--train.max-grad-norm", norm, "must be > 0")
        ok = self.select == "last" or self.score_dev == "epoch"
        _require(ok, "--train.select", self.select, "this needs dev scores, add --train.score-dev epoch")

    def micro_batch_size(self, world_size: int) -> int:
        """Compute the examples per forward pass of one process.

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
        """Compute the optimizer steps of one pass over `num_examples`; the last one may have fewer examples."""
        return math.ceil(num_examples / self.global_batch_size)

    def total_steps(self, num_examples: int) -> int:
        """Compute the optimizer steps of the whole training."""
        whole = self.epochs * self.steps_per_epoch(num_examples)
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Compute the learning rate of step `step` (from 0) of `total`, linear with warm-up, in any world the same."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        return self.learning_rate * max(0, total - step) / max(1, total - self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Beam search over the test set (Table 2, "Inference")."""

    num_beams: int = 10
    """Beams per meaning representation (MR)."""
    length_penalty: float = 0.9
    """A sentence's score is its log-probability / length ** length_penalty; the length includes end-of-text."""
    no_repeat_ngram_size: int = 4
    """Forbid any n consecutive tokens from occurring twice; 0 turns this off."""
    ngram_scope: NgramScope = "generated"
    """Text in which n-grams are compared. generated: the sentence only (the LoRA authors' decoder). all: prompt
    and sentence (transformers' generate, the seed paper's), which also forbids copying n tokens of the prompt."""
    early_stopping: Literal["true", "false", "never"] = "true"
    """When the search for an MR ends. true: at as many finished sentences as beams. false: when the best running beam
    cannot beat the worst finished one at its current length. never: when it cannot at any later length either."""
    max_new_tokens: int = 64
    """Longest sentence, in tokens."""
    precision: Precision = "fp32"
    """Precision of weights and activations."""
    num_return: int = 1
    """Sentences to keep per MR, best first; outputs.jsonl lists all but the first as alternatives."""
    batch_tokens: int | None = None
    """Tokens per chunk, of the prompts and all their beams; None is a constant of the kind of device, CPU or GPU."""
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
    """Everything that determines the result of a run."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)

    def sections(self) -> "Settings":
        """Return only these five sections; a command with further arguments is a subclass."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})
