"""The settings of `reproduce` and `sweep`, in a module without torch, as the command line's help needs them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from lora_dist.config import DataSettings, DecodeSettings, Init, Settings, TrainSettings, flag
from lora_dist.distributed.launcher import STRATEGIES
from lora_dist.distributed.logs import LogSettings
from lora_dist.errors import UserError
from lora_dist.presets import PRESETS


def _check_values(name: str, section: str, key: str, values: tuple[Any, ...]) -> None:
    """Check each value as that of the setting that it is for, but name the flag that was typed."""
    for value in values:
        try:
            replace(getattr(Settings(), section), **{key: value})
        except UserError as error:
            raise UserError(str(error).replace(flag(section, key), f"--{name}", 1)) from None


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand(LogSettings):
    """Run every base model with several presets and seeds, then write the paper's tables with all runs.

    Each is an ordinary run below --out. When repeated, the command skips complete runs and resumes the others. A run
    that fails does not stop the others.
    """

    models: tuple[str, ...] = ("gpt2", "gpt2-medium")
    """Hub ids or folders of the base models."""
    presets: Annotated[tuple[str, ...], arg(metavar=f"[{{{','.join(PRESETS)}}}...]")] = ("baseline", "improved")
    """Published configurations to run."""
    seeds: tuple[int, ...] = (42, 43, 44)
    """Seeds, with one run each; the tables show mean and standard deviation over them."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs and of the report."""
    processes: int | None = None
    """Processes per run; None is one per GPU, or two on CPU cores."""
    strategy: Annotated[str, arg(metavar=f"{{{','.join(STRATEGIES)}}}")] = "ddp"
    """Strategy of the training: DistributedDataParallel (ddp) or a stage of DeepSpeed ZeRO."""
    together: int | None = None
    """Runs of a model and preset that each process trains at the same time, see sweep: None is as many as its memory
    holds, at most 8; 1 launches each run by itself, on all processes."""
    compare_decoding: bool = False
    """Also decode each adapter with both scopes of the n-gram ban and with length penalties 0.8 and 0.9."""
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)

    def __post_init__(self) -> None:
        for name in ("models", "presets", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{name} is {' '.join(map(str, values)) or 'empty'}: name each once")
        for option, names, known in (("presets", self.presets, PRESETS), ("strategy", (self.strategy,), STRATEGIES)):
            if unknown := [name for name in names if name not in known]:
                raise UserError(f"--{option} is {unknown[0]}: choose from {', '.join(known)}")
        _check_values("seeds", "train", "seed", self.seeds)
        if self.train.seed != TrainSettings().seed:
            raise UserError(f"--train.seed is {self.train.seed}: give --seeds, one for each run")
        for name in ("processes", "together"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} is {value}: must be >= 1")
        if (self.together or 1) > 1 and self.strategy != "ddp":
            raise UserError(f"--together is {self.together}: with --strategy {self.strategy} it must be 1")

    @property
    def trains_together(self) -> bool:
        """Whether the runs of a model and preset are one launch, of `sweep`."""
        return self.together != 1 and self.strategy == "ddp" and self.train.tracker == "none" and len(self.seeds) > 1


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What the runs of a sweep differ in: every combination is a run; a setting without values is the preset's."""

    seeds: tuple[int, ...] = (42, 43, 44)
    """Seeds, see --train.seed."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, see --train.learning-rate."""
    warmup_steps: tuple[int, ...] = ()
    """Lengths of the warm-up, see --train.warmup-steps."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays, see --train.weight-decay."""
    label_smoothings: tuple[float, ...] = ()
    """Label smoothings, see --train.label-smoothing."""
    alphas: tuple[float, ...] = ()
    """Scales of the adapters, see --lora.alpha."""
    dropouts: tuple[float, ...] = ()
    """Dropout probabilities of the adapters, see --lora.dropout."""
    inits: tuple[Init, ...] = ()
    """Initialisations of the adapters, see --lora.init."""
    together: int | None = None
    """Most runs that one process trains at the same time; None is as many as its memory holds, at most 8."""
    out: Path = Path("runs/sweep")
    """Folder of the runs and of the report."""
    prefix: str = ""
    """Beginning of the names of the runs' folders."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UserError("--seeds is empty: name at least one")
        for name, (section, key, values) in self._factors().items():
            if len(set(values)) < len(values):
                raise UserError(f"--{name} is {' '.join(map(str, values))}: name each once")
            _check_values(name, section, key, values)
        if self.together is not None and self.together < 1:
            raise UserError(f"--together is {self.together}: must be >= 1")

    def _factors(self) -> dict[str, tuple[str, str, tuple[Any, ...]]]:
        """Return the section, the setting and the values of each factor."""
        return {
            "seeds": ("train", "seed", self.seeds),
            "learning-rates": ("train", "learning_rate", self.learning_rates),
            "warmup-steps": ("train", "warmup_steps", self.warmup_steps),
            "weight-decays": ("train", "weight_decay", self.weight_decays),
            "label-smoothings": ("train", "label_smoothing", self.label_smoothings),
            "alphas": ("lora", "alpha", self.alphas),
            "dropouts": ("lora", "dropout", self.dropouts),
            "inits": ("lora", "init", self.inits),
        }

    def runs(self, settings: Settings) -> Iterator[tuple[str, Settings]]:
        """Iterate over the names of the runs and their settings, which are `settings` with one value of each factor."""
        factors = [(name, *factor) for name, factor in self._factors().items() if factor[2]]
        for values in product(*(values for *_, values in factors)):
            words, found = [], settings
            for (name, section, key, _), value in zip(factors, values, strict=True):
                words.append(f"{SHORT.get(name, name.removesuffix('s'))}{value}")
                found = replace(found, **{section: replace(getattr(found, section), **{key: value})})
            yield self.prefix + "-".join(words), found


SHORT = {"learning-rates": "lr", "warmup-steps": "warmup", "weight-decays": "decay", "label-smoothings": "smoothing"}
"""Words for some factors in the names of runs."""
