"""The settings of `reproduce`, in a module without torch, as the command line's help needs them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from lora_dist.config import DataSettings, DecodeSettings, TrainSettings
from lora_dist.distributed.launcher import STRATEGIES
from lora_dist.distributed.logs import LogSettings
from lora_dist.errors import UserError
from lora_dist.presets import PRESETS


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
        for flag, names, known in (("presets", self.presets, PRESETS), ("strategy", (self.strategy,), STRATEGIES)):
            if unknown := [name for name in names if name not in known]:
                raise UserError(f"--{flag} is {unknown[0]}: choose from {', '.join(known)}")
        if self.train.seed != TrainSettings().seed:
            raise UserError(f"--train.seed is {self.train.seed}: give --seeds, one for each run")
        if self.processes is not None and self.processes < 1:
            raise UserError(f"--processes is {self.processes}: must be >= 1")
