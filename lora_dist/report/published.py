"""Published scores: the paper's Table 3, and what other methods publish or users report for GPT-2 on E2E."""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from lora_dist.metrics.suite import METRICS

Choice = Literal["paper", "all", "none"]
"""Published rows in a report: the paper's, those of the run's model size too, or none."""


class Published(NamedTuple):
    """One row of published scores on the whole E2E test set."""

    name: str
    trainable: str
    """Number of trainable parameters as printed."""
    scores: tuple[float, ...]
    """In the order of `suite.METRICS`: NIST in bits, CIDEr 0 to 10, the others 0 to 1."""


class Method(NamedTuple):
    """One row of published.json."""

    model: str
    """Hub id of the base model."""
    method: str
    params: int | None
    """Trainable parameters; None if the source does not give them."""
    scores: tuple[float | None, ...]
    """In the order of `suite.METRICS`; None if the source does not give one."""
    choice: str | None
    """Epoch whose model was scored: `last`, `best`, or None if the source does not say."""
    seeds: int | None
    """Runs behind the row; None if the source does not say."""
    source: str


PAPER = (
    Published("Baseline (E2E)", "-", (0.6593, 8.6094, 0.4483, 0.6850, 2.2338)),
    Published("Baseline (GPT-2 S)", "0.15M", (0.6476, 8.4059, 0.4381, 0.6588, 2.2413)),
    Published("Original (GPT-2 M)", "0.35M", (0.704, 8.85, 0.468, 0.7180, 2.53)),
    Published("Goal", "-", (0.695, 8.80, 0.464, 0.711, 2.47)),
    Published("Improved", "2.36M", (0.6882, 8.7540, 0.4667, 0.7103, 2.4537)),
)
"""Table 3 of "Finetuning GPT-2 on E2E Using LoRA" (Swift)."""

PAPER_SOURCE = "Swift, Table 3"

TRAINABLE = {"Baseline (GPT-2 S)": 147_456, "Original (GPT-2 M)": 393_216, "Improved": 2_359_296}
"""Exact numbers of trainable parameters, computed from the shapes."""

SIZES = {"gpt2": "GPT-2 Small", "gpt2-medium": "GPT-2 Medium", "gpt2-large": "GPT-2 Large"}
"""Base models that have published rows, by Hub id."""

GROUPS = ("best", "last", None)
"""Order of the rows by the epoch that was scored."""


@cache
def methods() -> tuple[Method, ...]:
    """Read the rows of published.json."""
    text = resources.files("lora_dist.report").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(Method(scores=tuple(row.pop(metric) for metric in METRICS), **row) for row in json.loads(text)["rows"])


def model_size(name: str) -> str | None:
    """Return the Hub id of the base model with published rows that a name or folder stands for; None without one."""
    short = Path(name.removeprefix("openai-community/")).name
    return short if short in SIZES else None


def published_rows(names: Sequence[str], choice: Choice) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the published rows of Table 3, best epoch, last epoch, and not stated, and notes on them.

    The seed paper's rows come once, from `PAPER`. A row without the four digits or fields that its source lacks has
    dashes there.

    Args:
        names: base models of the report's runs.
        choice: which rows.
    """
    if choice == "none":
        return [], []
    rows = [
        (f"{p.name}, paper", p.trainable, "-", "-", *(f"{s:.4f}" for s in p.scores), "-", PAPER_SOURCE) for p in PAPER
    ]
    if choice == "paper":
        return rows, []
    sizes = {size for name in names if (size := model_size(name)) is not None}
    notes = ["Published rows: a dash stands for what the source does not say"]
    if not sizes:
        sizes = {"gpt2"}
        unknown = ", ".join(sorted(set(map(_short, names))))
        notes.append(f"No scores are published for {unknown}: the rows after the paper's are GPT-2 Small's")
    others = [m for m in methods() if m.model in sizes and not m.source.startswith("Swift")]
    others.sort(key=lambda m: (GROUPS.index(m.choice), list(SIZES).index(m.model)))  # stable: the file's order within
    return rows + [_row(m, len(sizes) > 1) for m in others], notes


def _row(row: Method, name_model: bool) -> tuple[str, ...]:
    name = f"{row.method}, {SIZES[row.model]}" if name_model else row.method
    params = "-" if row.params is None else f"{row.params / 1e6:.3g}M"
    scores = ("-" if score is None else f"{score:.4f}" for score in row.scores)
    return name, params, str(row.seeds or "-"), row.choice or "-", *scores, "-", row.source


def _short(name: str) -> str:
    return Path(name).name
