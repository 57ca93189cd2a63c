"""The arguments of each command besides the sections of `config`; the docstrings are the command line's help."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from lora_dist.config import DataSettings, DecodeSettings, ModelSettings, Precision, Settings, TrainSettings
from lora_dist.distributed.logs import LogSettings
from lora_dist.distributed.watchdog import HANG_TIMEOUT
from lora_dist.errors import UserError
from lora_dist.workflows.settings import SweepSettings


@dataclass(frozen=True, kw_only=True)
class LaunchedCommand(LogSettings):
    """Settings of the commands that can run in several processes."""

    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N. auto uses the launcher's choice, or the GPU with the most free memory."""
    hang_timeout: float = HANG_TIMEOUT
    """Seconds without progress after which each process reports where it is stuck and ends; 0 turns this off."""

    def __post_init__(self) -> None:
        if not 0 <= self.hang_timeout < math.inf:
            raise UserError(f"--hang-timeout is {self.hang_timeout}: must be >= 0 seconds (0 is off)")


@dataclass(frozen=True, kw_only=True)
class JsonCommand(LogSettings):
    """Settings of the commands whose result can also be a file."""

    json: Path | None = None
    """Also write the result to this file, as JSON."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(LaunchedCommand, Settings):
    """Settings of a new run; the defaults are those of the preset."""

    out: Path = Path("runs/run")
    """Folder of the run."""
    resume: bool = False
    """Resume the run in --out from its newest complete checkpoint, or start it if there is none."""
    overwrite: bool = False
    """Delete the run in --out first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite exclude each other: give one of them")


@dataclass(frozen=True, kw_only=True)
class SweepCommand(LaunchedCommand, SweepSettings, Settings):
    """Train runs over one frozen base model at the same time, decode and score each, and report them together.

    Each combination of the values is an ordinary run below --out. Under a launcher the runs are dealt out to the
    processes. When repeated, the command skips complete runs and resumes the others.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        SweepSettings.__post_init__(self)
        if self.train.seed != TrainSettings().seed:
            raise UserError(f"--train.seed is {self.train.seed}: give --seeds, one for each run")
        if self.train.tracker != "none":
            raise UserError(
                f"--train.tracker is {self.train.tracker}: runs that train together write metrics.jsonl only"
            )


@dataclass(frozen=True, kw_only=True)
class PlanCommand(JsonCommand, Settings):
    """Compute memory, communication volume and schedule of a training with these settings, without loading anything."""

    processes: int = 1
    """Number of processes to plan for."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the processes compute on; auto is what this machine has."""
    precision: Precision | None = None
    """Precision of the frozen weights; None is what the device would use."""
    together: int = 1
    """Runs that each process trains at the same time, as sweep does; only the memory depends on it."""
    memory: float | None = None
    """Memory that each process may use, in GiB; None is what this machine has for each."""

    def __post_init__(self) -> None:
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise UserError(f"--memory is {self.memory}: must be > 0 GiB")
        if self.together < 1:
            raise UserError(f"--together is {self.together}: must be >= 1")


@dataclass(frozen=True, kw_only=True)
class DecodeCommand(LaunchedCommand):
    """Write one sentence for each meaning representation of the test set to RUN/decode."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run with an adapter; with --out also the folder of an adapter, such as PEFT writes."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    out: Path | None = None
    """Decode a copy of the run in this folder instead, to compare decoding settings on the same adapter."""


@dataclass(frozen=True, kw_only=True)
class GenerateCommand(LogSettings):
    """Print a sentence for each meaning representation, or with --decode.num-return N the best N with their scores."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run with an adapter."""
    mrs: Positional[tuple[str, ...]]
    """Meaning representations, such as "name[The Eagle], food[French]"."""
    model: ModelSettings = field(default_factory=ModelSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N. auto uses the GPU with the most free memory."""


@dataclass(frozen=True, kw_only=True)
class MergeCommand(LogSettings):
    """Write the base model with the adapter merged into its weights: a plain GPT-2 that transformers loads."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run with an adapter."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Output folder; it must be empty or not exist."""
    model: ModelSettings = field(default_factory=ModelSettings)


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(LogSettings):
    """Compute the five metrics of the E2E NLG Challenge as its official script does."""

    references: Annotated[Positional[Path], tyro.conf.arg(metavar="REFERENCES")]
    """Human references: text with an empty line between two instances, or a .tsv or .csv with the columns mr, ref."""
    outputs: Annotated[Positional[Path], tyro.conf.arg(metavar="OUTPUTS")]
    """Outputs: text with one per line in the same order, a .tsv or .csv with the columns mr, output, or a run's
    outputs.jsonl."""
    mteval: Literal["perl", "python"] = "perl"
    """Implementation of BLEU and NIST: perl is the official script's default, python that of its -p option."""
    json: bool = False
    """Print the scores as a JSON object."""
    mrs: Path | None = None
    """Meaning representations, one per line or in the column mr of a .tsv or .csv; adds the slot error rate."""
    partial: bool = False
    """Score the instances that have an output, if others have none; the signature says so."""
    sentence_level: Path | None = None
    """Also write the scores of each instance to this file, as tab-separated text."""
    bootstrap: int | None = None
    """Add 95 % confidence intervals from N resamples of the instances, such as 1000."""
    against: Path | None = None
    """Another system's outputs; adds a paired test of the differences (needs --bootstrap)."""
    save: Path | None = None
    """Also write the scores as a JSON object to this file, such as RUN/scores.json."""


@dataclass(frozen=True, kw_only=True)
class ReportCommand(LogSettings):
    """Write the paper's tables with these runs next to them, plots, and a browser of the sentences.

    Runs that differ only in the seed are one row, with their mean and standard deviation. Of runs with the same adapter
    (see decode --out) only the first is in that row, and a separate table compares their decoding settings.
    """

    runs: Positional[tuple[Path, ...]]
    """Folders of decoded runs; those without scores are scored first."""
    out: Path | None = None
    """Folder for report.md and report.html; None is the first run's."""
    compare: bool = False
    """Print the differences of two runs instead: settings, scores with a paired test, and sentences."""
    published: Literal["paper", "all", "none"] = "all"
    """Published scores next to the runs: the paper's only, those of other methods on the same base model too, or
    none."""
    push: str | None = None
    """Also upload the adapter of a single run, with its model card, to this repository on the Hugging Face hub."""

    def __post_init__(self) -> None:
        if self.compare and len(self.runs) != 2:
            raise UserError(f"--compare needs two runs, not {len(self.runs)}: lora-dist report --compare A B")
        if self.push is not None and len(self.runs) != 1:
            raise UserError(f"--push {self.push} takes the adapter of one run, not of {len(self.runs)}")


@dataclass(frozen=True, kw_only=True)
class DemoCommand(LogSettings):
    """Run the whole pipeline offline: synthetic corpus, tiny base model, LoRA, decoding, scores, report."""

    out: Path = Path("runs/demo")
    """Folder for all files; an earlier demo in it is replaced."""
    seed: int = 42
    """Seed of corpus, base model and training."""


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(LogSettings):
    """Train a few steps and decode a few sentences with every strategy, and compare the results with one process.

    For each strategy, number of processes and accumulation, prints the relative differences of adapter and losses, and
    how many learning rates, batches and sentences differ. The exit code is 1 if anything differs by more than rounding.
    """

    processes: tuple[int, ...] | None = None
    """Numbers of processes to launch with each strategy; None is one per GPU, or two on CPU cores."""
    accumulation: tuple[int, ...] = (1,)
    """Numbers of accumulation steps to combine with each of them."""
    model: Path | None = None
    """Folder of a GPT-2; None creates a tiny one."""
    data: Path | None = None
    """Folder with E2E's CSV files, of which a few examples are used; None creates a synthetic corpus."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(LogSettings):
    """Check what this machine has, and whether two processes on it find each other."""
