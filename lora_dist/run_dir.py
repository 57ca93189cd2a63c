"""The layout of a run directory: no other module knows its file names."""

from dataclasses import dataclass
from pathlib import Path

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's name for the file with an adapter's matrices."""

COMPLETE = "COMPLETE"
"""Name of the marker that is written last into a checkpoint."""


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
        """One JSON line per logged step, and one per dev evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        """The trained adapter, a folder in PEFT's layout."""
        return self.root / "adapter"

    def epoch(self, number: int) -> Path:
        """Return the folder of the adapter after an epoch (from 1), in the same layout."""
        return self.root / "epochs" / f"epoch-{number}"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def outputs(self) -> Path:
        """One JSON line per meaning representation: index, mr, text, score."""
        return self.root / "decode" / "outputs.jsonl"

    @property
    def outputs_text(self) -> Path:
        """One sentence per line, in the official order."""
        return self.root / "decode" / "outputs.txt"

    @property
    def references_text(self) -> Path:
        """The human references, one per line, a blank line between two meaning representations."""
        return self.root / "decode" / "references.txt"

    @property
    def decode_signature(self) -> Path:
        """What the outputs depend on: beam settings, adapter and base fingerprints, data, versions."""
        return self.root / "decode" / "signature.json"

    @property
    def decode_timing(self) -> Path:
        """Seconds and sentences of the last decoding, and the world it ran in."""
        return self.root / "decode" / "timing.json"

    @property
    def sentence_scores(self) -> Path:
        """The scores of each sentence, tab-separated, in the official script's columns."""
        return self.root / "decode" / "sentences.tsv"

    def ledger(self, rank: int) -> Path:
        """Return the path of a rank's ledger: one line per meaning representation it has decoded so far."""
        return self.root / "decode" / "ledger" / f"rank-{rank:04d}.jsonl"

    @property
    def scores(self) -> Path:
        """The five scores and their signature."""
        return self.root / "scores.json"

    @property
    def profile_table(self) -> Path:
        """Time by operation of a few steps."""
        return self.root / "profile" / "operations.txt"

    @property
    def profile_trace(self) -> Path:
        """The same steps as a trace for chrome://tracing."""
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

    @property
    def lock(self) -> Path:
        """Locked by the process that writes to the run, whose name it holds."""
        return self.root / ".lock"

    def checkpoint_folders(self) -> dict[int, Path]:
        """Find the folders of checkpoints, complete or not, by step; copies under other names are none."""
        names = [path.name for path in self.checkpoints.iterdir()] if self.checkpoints.is_dir() else []
        steps = [int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdecimal()]
        return {step: self.checkpoint(step) for step in steps if self.checkpoint(step).name in names}

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint written after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:06d}"
