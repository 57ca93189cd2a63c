"""The run directory: the only place that knows its file names, and what may be done to which of them."""

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_dist import __version__
from lora_dist.config import Settings, UserError
from lora_dist.config_io import from_json, to_json
from lora_dist.files import PART, read_json, write_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's name for the file with the matrices of an adapter."""


@dataclass(frozen=True)
class RunDir:
    """Paths below one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """Resolved settings, versions, data fingerprints, world."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged update, and one a dev evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        """The trained adapter, a folder in PEFT's layout."""
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def outputs(self) -> Path:
        """One JSON line a meaning representation: index, mr, text, score."""
        return self.root / "decode" / "outputs.jsonl"

    @property
    def outputs_text(self) -> Path:
        """One sentence a line, in the official order."""
        return self.root / "decode" / "outputs.txt"

    @property
    def references_text(self) -> Path:
        """The human references, one a line, a blank line between two meaning representations."""
        return self.root / "decode" / "references.txt"

    @property
    def decode_signature(self) -> Path:
        """What made the outputs: beam settings, adapter and base fingerprints, data, versions."""
        return self.root / "decode" / "signature.json"

    @property
    def decode_timing(self) -> Path:
        """Seconds of the last decoding, how many sentences it made, and in which processes."""
        return self.root / "decode" / "timing.json"

    @property
    def sentence_scores(self) -> Path:
        """The scores of each sentence, tab-separated, in the official script's columns."""
        return self.root / "decode" / "sentences.tsv"

    def ledger(self, rank: int) -> Path:
        """What a rank has decoded so far, one line a sentence, appended as they come."""
        return self.root / "decode" / "ledger" / f"rank-{rank:04d}.jsonl"

    @property
    def scores(self) -> Path:
        """The five scores and their signature."""
        return self.root / "scores.json"

    @property
    def profile_table(self) -> Path:
        """Time by operation of a few updates."""
        return self.root / "profile" / "operations.txt"

    @property
    def profile_trace(self) -> Path:
        """The same updates as a trace for chrome://tracing."""
        return self.root / "profile" / "trace.json"

    @property
    def report_markdown(self) -> Path:
        """The report as Markdown."""
        return self.root / "report.md"

    @property
    def plots(self) -> Path:
        """Folder of the report's plots, as SVG."""
        return self.root / "plots"

    @property
    def report_html(self) -> Path:
        """The report as one self-contained page."""
        return self.root / "report.html"

    def settings(self) -> Settings:
        """The settings the run was started with.

        Raises:
            UserError: if this is not the folder of a run.
        """
        values = read_json(self.config, f"{self.root} is not the folder of a run")
        return from_json(Settings, values["settings"])

    def require_folder(self) -> None:
        """Refuse a root that is something else than a folder.

        Raises:
            UserError: if it is.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"--out {self.root} is a file: name a folder")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that the folder may be written to, and that no other run would be lost by it; changes nothing.

        Raises:
            UserError: if the folder holds something and neither flag says what to do with it.
        """
        self.require_folder()
        if self.root.is_dir() and any(self.root.iterdir()):
            if overwrite and not self.config.is_file():
                raise UserError(f"--out {self.root} is not the folder of a run, so --overwrite leaves it alone")
            if resume and not self.config.is_file() and any(not p.name.startswith(PART) for p in self.root.iterdir()):
                raise UserError(f"--out {self.root} is not the folder of a run, so there is nothing to --resume there")
            if not (resume or overwrite):
                raise UserError(
                    f"--out {self.root} holds another run: add --resume, --overwrite, or name another folder"
                )
        existing = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise UserError(f"--out {self.root} cannot be written to: name another folder")

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folder, without the run it held if `overwrite`; to be called when all else has been checked.

        What a kill left half-written or half-deleted is removed.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        # Not the configuration: without it, what a kill in the middle of this leaves would not count as a run.
        old = [path for path in self.root.iterdir() if path != self.config] if overwrite else []
        checkpoints = {self.checkpoint(step) for step in self.steps()}
        halves = [*self.root.rglob(f"{PART}*"), *(set(self.checkpoints.glob("step-*")) - checkpoints)]
        for path in (*old, *halves):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if overwrite:
            self.config.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Updates at which a complete checkpoint was written, oldest first."""
        found = self.checkpoints.glob("step-*/COMPLETE")
        return sorted(int(marker.parent.name.removeprefix("step-")) for marker in found)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint written after `step` updates."""
        return self.checkpoints / f"step-{step:06d}"

    def keep_newest(self, count: int) -> None:
        """Delete all but the `count` newest complete checkpoints."""
        for step in self.steps()[:-count]:
            folder = self.checkpoint(step)
            (folder / "COMPLETE").unlink()  # first, so that a half-deleted checkpoint is never taken for a whole one
            shutil.rmtree(folder)


def write_config(
    run: RunDir, settings: Settings, world: dict[str, Any], data: dict[str, str], counts: dict[str, int]
) -> None:
    """Write config.json: the resolved settings, and what they met on this machine."""
    write_json(
        run.config,
        {"settings": to_json(settings), "counts": counts, "world": world, "data": data, "versions": versions()},
    )


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("torch", "transformers", "accelerate", "deepspeed", "numpy", "tokenizers")
    found = {"lora_dist": __version__, "python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
