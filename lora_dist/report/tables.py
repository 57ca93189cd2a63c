"""The paper's four tables with runs next to its rows, and tables of time, memory, runs and decoding settings."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_dist.config import LoraSettings, Settings
from lora_dist.metrics.suite import METRICS
from lora_dist.presets import BASELINE, PRESETS
from lora_dist.report.configurations import Configuration
from lora_dist.report.published import PAPER, Choice, published_rows
from lora_dist.report.results import Result

UNKNOWN = "unknown"
"""Cell for the training of an imported adapter."""


@dataclass(frozen=True)
class Table:
    """A table of strings with notes below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    num_published: int = 0
    """Rows at the top that are published scores, not runs."""


def adapter_table(configurations: Sequence[Configuration]) -> Table:
    """Build Table 1: hyperparameters and initialization of the adapters, the paper's first."""
    adapters = {preset.column: preset.settings.lora for preset in PRESETS.values()}
    adapters |= {c.label: c.first.settings.lora for c in configurations}
    cells: dict[str, Callable[[LoraSettings], str]] = {
        "Rank": lambda lora: str(lora.rank),
        "Alpha": lambda lora: f"{lora.alpha:g}",
        "Target modules": lambda lora: ", ".join(lora.targets),
        "Dropout": lambda lora: f"{lora.dropout:g}",
        "Variant": lambda lora: ", ".join(["rsLoRA"] * lora.rslora + ["DoRA"] * lora.dora) or "LoRA",
        "Bias": lambda _: "none",
    }
    rows = [(name, *(cell(lora) for lora in adapters.values())) for name, cell in cells.items()]
    inits = [preset.settings.lora.init.capitalize() for preset in PRESETS.values()]
    inits += [c.first.settings.lora.init.capitalize() if c.first.trained_here else UNKNOWN for c in configurations]
    rows.append(("Initialization", *inits))
    counts = [preset.trainable for preset in PRESETS.values()]
    counts += [f"{c.first.trainable:,}" for c in configurations]
    return Table("Table 1: LoRA configurations", ("", *adapters), (*rows, ("Trainable params", *counts)))


def hyperparameter_table(configurations: Sequence[Configuration]) -> Table:
    """Build Table 2: settings of training and decoding as read from the run folders, the paper's first."""
    training: dict[str, Callable[[Settings], Any]] = {
        "Optimizer": lambda _: "AdamW",
        "Weight decay": lambda s: f"{s.train.weight_decay:g}",
        "Batch size": lambda s: s.train.global_batch_size,
        "Epochs": lambda s: s.train.epochs if s.train.max_steps is None else f"{s.train.max_steps:,} steps",
        "Training examples": lambda s: "all" if s.data.limit_train is None else f"first {s.data.limit_train:,}",
        "Warm-up steps": lambda s: s.train.warmup_steps,
        "Learning-rate schedule": lambda _: "Linear",
        "Label smoothing": lambda s: f"{s.train.label_smoothing:g}",
        "Learning rate": lambda s: f"{s.train.learning_rate:g}",
        "Learning rate of B": lambda s: f"{s.train.learning_rate * s.train.lora_plus_ratio:g}",
        "GPT-2 dropout": lambda s: "the checkpoint's" if s.model.dropout is None else f"{s.model.dropout:g}",
        "References per MR": lambda s: s.train.refs_per_mr,
    }
    decoding: dict[str, Callable[[Settings], Any]] = {
        "Beam size": lambda s: s.decode.num_beams,
        "Length penalty": lambda s: f"{s.decode.length_penalty:g}",
        "No-repeat n-gram size": lambda s: s.decode.no_repeat_ngram_size,
        "No-repeat n-gram scope": lambda s: s.decode.ngram_scope,
        "Early stopping": lambda s: s.decode.early_stopping,
        "Max new tokens": lambda s: s.decode.max_new_tokens,
        "Decoding precision": lambda s: s.decode.precision,
    }
    unpublished = ["Training examples", "GPT-2 dropout", "References per MR", "No-repeat n-gram scope"]
    unpublished += ["Early stopping", "Max new tokens", "Decoding precision"]
    rows = []
    for name, cell in {**training, **decoding}.items():
        cells = [
            str(cell(c.first.settings)) if c.first.trained_here or name in decoding else UNKNOWN for c in configurations
        ]
        rows.append((name, "-" if name in unpublished else str(cell(BASELINE)), *cells))
    seeds = [", ".join(map(_seed, c.results)) for c in configurations]
    return Table(
        "Table 2: hyperparameters", ("", "Paper", *(c.label for c in configurations)), (*rows, ("Seeds", "-", *seeds))
    )


def score_table(configurations: Sequence[Configuration], published: Choice = "all") -> Table:
    """Build Table 3: the five scores below the published ones, with footnotes where they are not comparable."""
    rows, notes = published_rows([c.first.settings.model.name for c in configurations], published)
    num_published = len(rows)
    footnotes = Footnotes()
    for c in configurations:
        label = footnotes.mark(c.label, c.first.caveats())
        scores = [_mean_and_std(*pair) for pair in zip(c.mean(), c.std() or [None] * len(METRICS), strict=True)]
        what = label, f"{c.first.trainable:,}", str(len(c.results)), c.first.epoch if c.first.trained_here else UNKNOWN
        rows.append((*what, *scores, _slot_error_cell(c.results), "this report"))
    notes += ["± is the standard deviation over the seeds"] if any(len(c.results) > 1 for c in configurations) else []
    notes += [f"{r.name} is not counted: seed {r.seed} has another run" for c in configurations for r in c.repeated]
    head = ("Model", "Trainable params", "Seeds", "Epoch", *METRICS, "Slot errors", "Source")
    return Table("Table 3: scores on the test set", head, tuple(rows), (*notes, *footnotes.notes()), num_published)


def improvement_table(configurations: Sequence[Configuration], published: Choice = "all") -> Table:
    """Build Table 4: relative improvement in % over the paper and over other configurations of the base model."""
    paper = [] if published == "none" else PAPER
    rows = []
    footnotes = Footnotes()
    for c in configurations:
        label = footnotes.mark(c.label, c.first.caveats())
        comparisons = [(f"{p.name}, paper", p.scores) for p in paper]
        comparisons += [(o.label, o.mean()) for o in configurations if o is not c and o.first.base == c.first.base]
        for name, scores in comparisons:
            if not all(scores):  # relative to a score of 0 there is no improvement
                rows.append((label, name, *["-"] * (len(METRICS) + 1)))
                continue
            relative = [(ours / theirs - 1) * 100 for ours, theirs in zip(c.mean(), scores, strict=True)]
            rows.append((label, name, *(f"{value:+.2f}%" for value in (*relative, statistics.mean(relative)))))
    head = ("Model", "vs.", *METRICS, "Average")
    return Table("Table 4: relative improvement", head, tuple(rows), tuple(footnotes.notes()))


def cost_table(configurations: Sequence[Configuration]) -> Table:
    """Build the table of training time, throughput, peak memory and decoding time, means over the seeds."""
    rows = []
    for c in configurations:
        if not c.first.trained_here:
            continue
        world = c.first.config["world"]
        steps = [row for r in c.results for row in r.logged_steps()]
        memory = max((gib for row in steps for gib in row.get("peak_memory_gib", [])), default=None)
        seconds = [s for r in c.results if (s := r.training_seconds) is not None]
        examples = [steps[-1]["step"] * c.first.settings.train.global_batch_size / s for s in seconds]
        timings = [t for r in c.results if (t := r.seconds_per_mr) is not None]
        rows.append(
            (
                c.label,
                f"{world['processes']} x {world['device']}, {world['strategy']}, {world['precision']}",
                _mean([s / 60 for s in seconds], "{:.1f}"),
                _mean(examples, "{:.1f}"),
                "-" if memory is None else f"{memory:.2f}",
                _mean(timings, "{:.3f}"),
            )
        )
    head = ("Model", "Trained on", "Training, minutes", "Examples per second", "Peak GiB per rank", "Seconds per MR")
    notes = ("Training time is that of the steps only, without loading, dev evaluations and checkpoints",)
    return Table("Time and memory", head, tuple(rows), notes)


def run_table(results: Sequence[Result]) -> Table:
    """Build the table of single runs with their 95 % intervals."""
    rows = []
    for r in results:
        intervals = r.scores.get("bootstrap", {})
        cells = [
            f"{value:.4f}" + (" [{:.4f}, {:.4f}]".format(*intervals[name]) if name in intervals else "")
            for name, value in zip(METRICS, r.values, strict=True)
        ]
        rows.append((r.name, _seed(r), *cells, _slot_error_cell([r])))
    notes = ["In brackets: 95 % bootstrap intervals over the test instances (Koehn 2004)"]
    return Table("Each run", ("Run", "Seed", *METRICS, "Slot errors"), tuple(rows), tuple(notes))


def decoding_table(results: Sequence[Result]) -> Table | None:
    """Build the table of decoding settings on the same adapters; None if no adapter was decoded twice."""
    by_settings: dict[str, dict[str, Result]] = {}
    for result in results:
        decode = result.settings.decode
        name = f"{decode.ngram_scope}, {decode.length_penalty:g}"
        first_decode = vars(results[0].settings.decode)
        changed = {key: value for key, value in vars(decode).items() if value != first_decode[key]}
        shown = [key for key in changed if key not in ("ngram_scope", "length_penalty")]
        name += "".join(f", {key.replace('_', '-')} {changed[key]}" for key in shown)
        by_settings.setdefault(name, {}).setdefault(result.decoding["adapter"], result)
    common = set.intersection(*(set(by_adapter) for by_adapter in by_settings.values()))
    if len(by_settings) < 2 or not common:
        return None
    order = [adapter for adapter in next(iter(by_settings.values())) if adapter in common]
    first: list[tuple[float, ...]] | None = None
    rows = []
    for name, by_adapter in by_settings.items():
        values = [by_adapter[adapter].values for adapter in order]
        means = [statistics.mean(column) for column in zip(*values, strict=True)]
        if first is None:
            first, cells = values, [f"{mean:.4f}" for mean in means]
        else:
            pairs = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(values, first, strict=True)]
            changes = [statistics.mean(column) for column in zip(*pairs, strict=True)]
            cells = [f"{mean:.4f} ({change:+.4f})" for mean, change in zip(means, changes, strict=True)]
        rows.append((name, *cells, _slot_error_cell([by_adapter[adapter] for adapter in order])))
    return Table(
        "Decoding settings on the same adapters",
        ("No-repeat n-gram scope, length penalty", *METRICS, "Slot errors"),
        tuple(rows),
        (f"Means over {len(order)} adapters; in brackets: difference to the first row",),
    )


class Footnotes:
    """Letters for the caveats of rows, explained below the table."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, label: str, caveats: Iterable[str]) -> str:
        """Return the label with the letters of its caveats."""
        letters = [self._letters.setdefault(caveat, chr(ord("a") + len(self._letters))) for caveat in caveats]
        return f"{label} [{','.join(letters)}]" if letters else label

    def notes(self) -> list[str]:
        """Return the explanation of each letter."""
        return [f"[{letter}] not comparable with the paper's scores: {text}" for text, letter in self._letters.items()]


def markdown(table: Table) -> str:
    """Format a table as Markdown with its title and notes."""
    rows = (table.head, ["---"] * len(table.head), *table.rows)
    lines = [f"## {table.title}", "", *map(_markdown_row, rows)]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _seed(result: Result) -> str:
    return UNKNOWN if result.seed is None else str(result.seed)


def _mean_and_std(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(statistics.mean(values)) if values else "-"


def _slot_error_cell(results: Sequence[Result]) -> str:
    rates = [result.slot_error_rate for result in results]
    known = [rate for rate in rates if rate is not None]
    return f"{statistics.mean(known):.2%}" if len(known) == len(rates) and known else "-"
