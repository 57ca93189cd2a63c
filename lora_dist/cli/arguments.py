"""What each command takes, besides the sections of `config`; the docstrings are the command line's help."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from lora_dist.config import DataSettings, DecodeSettings, ModelSettings, Precision, Settings
from lora_dist.distributed.logs import LogSettings
from lora_dist.distributed.watchdog import HANG_TIMEOUT
from lora_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LaunchedCommand(LogSettings):
    """What a command takes that may run in several processes."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes what the launcher gives, or the GPU with most free memory."""
    hang_timeout: float = HANG_TIMEOUT
    """Seconds without progress after which each process reports where it is and ends; 0 turns that off."""

    def __post_init__(self) -> None:
        if not 0 <= self.hang_timeout < math.inf:
            raise UserError(f"--hang-timeout is {self.hang_timeout}: must be >= 0 seconds (0 is off)")


@dataclass(frozen=True, kw_only=True)
class TrainCommand(LaunchedCommand, Settings):
    """Settings of a new run, the paper's unless changed here."""

    out: Path = Path("runs/run")
    """Folder of the run."""
    resume: bool = False
    """Resume the run in --out from its newest complete checkpoint, or start it if there is none."""
    overwrite: bool = False
    """Delete the run in --out first."""


@dataclass(frozen=True, kw_only=True)
class PlanCommand(LogSettings, Settings):
    """Memory, communication volume and schedule of a training with these settings, before anything is loaded."""

    processes: int = 1
    """How many processes to plan for."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What they compute on; auto is what this machine has."""
    precision: Precision | None = None
    """Number format of the frozen weights; None is what the device would use."""
    memory: float | None = None
    """GiB that each process may use; None is what this machine has for each."""
    json: Path | None = None
    """Also write the plan to this file."""

    def __post_init__(self) -> None:
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise UserError(f"--memory is {self.memory}: must be > 0 GiB")


@dataclass(frozen=True, kw_only=True)
class DecodeCommand(LaunchedCommand):
    """Write one sentence for each meaning representation of the test set to RUN/decode."""

    run: Positional[Path]
    """Folder of a run with an adapter; with --out also of an adapter only, such as PEFT writes."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    out: Path | None = None
    """Folder for a copy of the run that is decoded instead, to compare decoding settings on one adapter."""


@dataclass(frozen=True, kw_only=True)
class GenerateCommand(LogSettings):
    """Print a sentence for each meaning representation; with --decode.num-return, the best N and their scores."""

    run: Positional[Path]
    """Folder of a run with an adapter."""
    mrs: Positional[tuple[str, ...]]
    """Each such as "name[The Eagle], food[French]"."""
    model: ModelSettings = field(default_factory=ModelSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class MergeCommand(LogSettings):
    """Write the base model with the adapter merged into its weights: a plain GPT-2 that transformers loads."""

    run: Positional[Path]
    """Folder of a run with an adapter."""
    out: Positional[Path]
    """Folder to write; must not exist, or be empty."""
    model: ModelSettings = field(default_factory=ModelSettings)


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(LogSettings):
    """The five metrics of the E2E NLG Challenge, as its official script computes them."""

    references: Annotated[Positional[Path], tyro.conf.arg(metavar="REFERENCES")]
    """Human references: text with an empty line between two instances, or a .tsv or .csv with the columns mr, ref."""
    outputs: Annotated[Positional[Path], tyro.conf.arg(metavar="OUTPUTS")]
    """Outputs in the same order: text with one per line, or a .tsv or .csv with the columns mr, output."""
    mteval: Literal["perl", "python"] = "perl"
    """Which of the official script's two programs for BLEU and NIST: its default, or that of its -p option."""
    json: bool = False
    """Print the scores as a JSON object."""
    mrs: Path | None = None
    """Meaning representations, one per line or in the column mr of a .tsv or .csv: add the slot error rate."""
    sentence_level: Path | None = None
    """Also write the scores of each instance to this file, as tab-separated text."""
    bootstrap: int | None = None
    """Add 95 % intervals from N resamples of the instances, such as 1000."""
    against: Path | None = None
    """Another system's outputs: add a paired test of the differences (needs --bootstrap)."""
    save: Path | None = None
    """Also write that object to this file, such as RUN/scores.json."""


@dataclass(frozen=True, kw_only=True)
class ReportCommand(LogSettings):
    """The paper's tables with these runs next to them, plots, and a browser over the sentences.

    Runs that differ only in the seed are one line, with their mean and spread. Of runs that share an adapter
    (see decode --out) the first is that line, and a separate table compares their decoding.
    """

    runs: Positional[tuple[Path, ...]]
    """Folders of decoded runs; those without scores are scored."""
    out: Path | None = None
    """Folder for report.md and report.html; the first run's if not given."""
    compare: bool = False
    """Of two runs, print what differs instead: settings, scores with a paired test, and sentences."""
    push: str | None = None
    """Also upload the adapter of the one run, with its model card, to this repository of the Hugging Face hub."""

    def __post_init__(self) -> None:
        if self.compare and len(self.runs) != 2:
            raise UserError(f"--compare needs two runs, not {len(self.runs)}: lora-dist report --compare A B")
        if self.push is not None and len(self.runs) != 1:
            raise UserError(f"--push {self.push} takes the adapter of one run, not of {len(self.runs)}")


@dataclass(frozen=True, kw_only=True)
class DemoCommand(LogSettings):
    """The whole job offline: synthetic corpus, tiny base model, LoRA, decoding, scores, report."""

    out: Path = Path("runs/demo")
    """Folder for everything; an earlier demo there is replaced."""
    seed: int = 42
    """Seed of corpus, base model and training."""


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(LogSettings):
    """Train a few steps and decode some sentences in every way this machine offers, and compare with one process.

    Prints for each strategy, number of processes and accumulation the relative differences of adapter and losses, and
    how many learning rates, batches and sentences differ; exit code 1 if anything differs by more than rounding.
    """

    processes: tuple[int, ...] | None = None
    """Numbers of processes to launch under each strategy; None is one per GPU, or two on CPU cores."""
    accumulation: tuple[int, ...] = (1,)
    """Accumulation steps to try with each of them."""
    model: Path | None = None
    """Folder of a GPT-2; without it a tiny one is made."""
    data: Path | None = None
    """Folder with E2E's CSV files, of which a few examples are used; without it a synthetic corpus is made."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(LogSettings):
    """What this machine offers."""
