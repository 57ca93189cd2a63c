"""The figures of the report: scores compared with the paper's, slot errors, and curves of training and dev scores."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from lora_dist.data.corpora import E2E
from lora_dist.metrics.slots.errors import ATTRIBUTES
from lora_dist.metrics.suite import METRICS
from lora_dist.report.configurations import Configuration
from lora_dist.report.plots import FOREGROUND
from lora_dist.report.published import PAPER, TRAINABLE
from lora_dist.report.results import Result
from lora_dist.training.log_rows import DEV

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito, "Color Universal Design": distinguishable with color vision deficiency, on light and dark."""
PAPER_LINES = ("Baseline (GPT-2 S)", "Original (GPT-2 M)", "Improved")
KINDS = {"missing": 1.0, "added": 0.6, "contradicted": 0.3}
"""Kinds of slot errors, and how opaque their bars are."""
FIGURE_WIDTH = 10.0
"""Width of every figure in inches."""


def plot_scores(configurations: Sequence[Configuration]) -> Figure:
    """Draw one panel per metric: each seed with its interval, mean and deviation, and the paper's scores as lines."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(METRICS))
    for column, (panel, metric) in enumerate(zip(panels, METRICS, strict=True)):
        if on_e2e(configurations):
            _draw_paper_lines(panel, column)
        for place, c in enumerate(configurations):
            color = _color(place)
            for offset, result in zip(_offsets(len(c.results)), c.results, strict=True):
                value = result.values[column]
                low, high = result.scores.get("bootstrap", {}).get(metric, (value, value))
                panel.plot([place + offset] * 2, [low, high], color=color, linewidth=1, alpha=0.6)
                panel.plot(place + offset, value, "o", color=color, markersize=4)
            panel.plot([place - 0.35, place + 0.35], [c.mean()[column]] * 2, color=color, linewidth=2)
            if (std := c.std()) is not None:
                panel.errorbar(place, c.mean()[column], std[column], fmt="none", color=color, capsize=5, linewidth=2)
        panel.set_title(metric)
        panel.set_xticks([])
        panel.set_xlim(-0.6, len(configurations) - 0.4)
    _draw_legend(figure, panels[0], configurations)
    return figure


def plot_size(configurations: Sequence[Configuration]) -> Figure:
    """Draw one panel per metric: mean scores vs. trainable parameters, of the runs and of the paper."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, len(METRICS))
    for column, (panel, metric) in enumerate(zip(panels, METRICS, strict=True)):
        for published in PAPER:
            if published.name in TRAINABLE and on_e2e(configurations):
                panel.plot(TRAINABLE[published.name], published.scores[column], "s", color=FOREGROUND, markersize=4)
        for place, c in enumerate(configurations):
            std = (c.std() or (0.0,) * len(METRICS))[column]
            panel.errorbar(c.first.trainable, c.mean()[column], std, fmt="o", color=_color(place), markersize=5)
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        counts = [*TRAINABLE.values(), *(c.first.trainable for c in configurations)]
        panel.set_xlim(10 ** math.floor(math.log10(min(counts))), 10 ** math.ceil(math.log10(max(counts))))
        panel.set_title(metric)
        panel.set_xlabel("trainable params")
    if on_e2e(configurations):
        panels[0].plot([], [], "s", color=FOREGROUND, markersize=4, label="paper")
    _draw_legend(figure, panels[0], configurations)
    return figure


def plot_slot_errors(configurations: Sequence[Configuration]) -> Figure:
    """Draw bars of missing, added and contradicted slots by attribute, means over the seeds, with deviations."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.4), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(configurations)
    for place, c in enumerate(configurations):
        slot_errors = [r.scores["slot_error_rate"] for r in c.results if r.slot_error_rate is not None]
        if not slot_errors:
            continue
        bottom = [0.0] * len(ATTRIBUTES)
        for kind, shade in KINDS.items():
            heights = [statistics.mean(errors[kind].get(name, 0) for errors in slot_errors) for name in ATTRIBUTES]
            xs = [index - 0.4 + width * (place + 0.5) for index in range(len(ATTRIBUTES))]
            panel.bar(xs, heights, width * 0.9, bottom, color=_color(place), alpha=shade)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        if len(slot_errors) > 1:
            totals = [
                [sum(errors[kind].get(name, 0) for kind in KINDS) for errors in slot_errors] for name in ATTRIBUTES
            ]
            panel.errorbar(xs, bottom, [*map(statistics.stdev, totals)], fmt="none", color=FOREGROUND, linewidth=1)
    panel.set_xticks(range(len(ATTRIBUTES)), ATTRIBUTES, rotation=20, ha="right")
    panel.set_ylabel("slots (dark: missing, middle: added,\nlight: contradicted)")
    _draw_legend(figure, panel, configurations)
    return figure


def plot_loss(configurations: Sequence[Configuration]) -> Figure:
    """Draw the training loss of each run over its steps, and its dev losses."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.6), layout="constrained")
    panel = figure.subplots()

    def draw(result: Result, color: str) -> None:
        _plot_logged(panel, result.logged_steps(), "loss", color)
        dev = result.dev_evaluations()
        panel.plot([row["step"] for row in dev], [row["dev_loss"] for row in dev], "o", color=color, markersize=5)

    _for_each_run(configurations, draw)
    for place, c in enumerate(configurations):
        points = [(row["step"], row["dev_loss"]) for result in c.results for row in result.dev_evaluations()]
        _deviations(panel, points, _color(place))
    panel.set_xlabel("step")
    panel.set_ylabel("label-smoothed cross-entropy,\nnats per token")
    _draw_legend(figure, panel, configurations)
    return figure


def plot_dev_scores(configurations: Sequence[Configuration]) -> Figure:
    """Draw one panel per metric: the scores of the decoded dev set over the epochs, a curve for each run."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, len(METRICS))
    for panel, metric in zip(panels, METRICS, strict=True):

        def draw(result: Result, color: str, panel: Axes = panel, name: str = DEV + metric) -> None:
            points = [(row["epoch"], row[name], row["step"]) for row in result.dev_scores() if name in row]
            panel.plot([x for x, _, _ in points], [y for _, y, _ in points], ".-", color=color, linewidth=1)
            for x, y, step in points:
                if step == result.selected_step:
                    panel.plot(x, y, "o", color=color, markersize=6)

        _for_each_run(configurations, draw)
        for place, c in enumerate(configurations):
            rows = [row for result in c.results for row in result.dev_scores() if DEV + metric in row]
            _deviations(panel, [(row["epoch"], row[DEV + metric]) for row in rows], _color(place))
        panel.set_title(metric)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _draw_legend(figure, panels[0], configurations)
    return figure


def plot_rates(configurations: Sequence[Configuration]) -> Figure:
    """Draw one panel per metric: each seed's score vs. the learning rate, and mean and deviation over the seeds."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, len(METRICS))
    for column, (panel, metric) in enumerate(zip(panels, METRICS, strict=True)):
        for place, c in enumerate(configurations):
            rate, std = c.first.settings.train.learning_rate, (c.std() or (0.0,) * len(METRICS))[column]
            panel.errorbar(rate, c.mean()[column], std, fmt="_", color=_color(place), capsize=4, markersize=10)
            panel.plot([rate] * len(c.results), [r.values[column] for r in c.results], ".", color=_color(place))
        panel.set_xscale("log")
        panel.set_title(metric)
        panel.set_xlabel("learning rate")
    _draw_legend(figure, panels[0], configurations)
    return figure


def plot_schedule(configurations: Sequence[Configuration]) -> Figure:
    """Draw the learning rate and the training throughput of each run over its steps."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.4), layout="constrained")
    rate, throughput = figure.subplots(1, 2)

    def draw(result: Result, color: str) -> None:
        _plot_logged(rate, result.logged_steps(), "lr", color)
        _plot_logged(throughput, result.logged_steps(), "examples_per_second", color)

    _for_each_run(configurations, draw)
    for panel, name in ((rate, "learning rate"), (throughput, "examples per second")):
        panel.set_xlabel("step")
        panel.set_ylabel(name)
        panel.set_ylim(bottom=0)
    _draw_legend(figure, rate, configurations)
    return figure


def _plot_logged(panel: Axes, rows: Sequence[dict[str, Any]], name: str, color: str) -> None:
    """Plot a logged value over steps, subsampled to at most 1,000 points."""
    shown = rows[:: max(1, len(rows) // 500)]
    panel.plot([row["step"] for row in shown], [row[name] for row in shown], color=color, linewidth=1, alpha=0.8)


def _deviations(panel: Axes, points: Sequence[tuple[float, float]], color: str) -> None:
    """Draw mean and standard deviation of the values of several runs at each x that more than one of them has."""
    values: dict[float, list[float]] = {}
    for x, y in points:
        values.setdefault(x, []).append(y)
    for x, ys in values.items():
        if len(ys) > 1:
            panel.errorbar(
                x, statistics.mean(ys), statistics.stdev(ys), fmt="none", color=color, capsize=3, linewidth=1
            )


def _for_each_run(configurations: Sequence[Configuration], draw: Callable[[Result, str], None]) -> None:
    for place, c in enumerate(configurations):
        for result in c.results:
            draw(result, _color(place))


def on_e2e(configurations: Sequence[Configuration]) -> bool:
    """Whether the runs' scores may stand next to the paper's."""
    return all(c.first.corpus == E2E.name for c in configurations)


def _draw_paper_lines(panel: Axes, column: int) -> None:
    styles = zip(PAPER_LINES, ("--", "-.", ":"), strict=True)
    scores = {published.name: published.scores for published in PAPER}
    for name, style in styles:
        panel.axhline(scores[name][column], color=FOREGROUND, linewidth=0.8, linestyle=style, label=f"{name}, paper")


def _draw_legend(figure: Figure, panel: Axes, configurations: Sequence[Configuration]) -> None:
    """Draw one legend below the panels: the labeled artists of `panel`, and the configurations by color."""
    handles, labels = panel.get_legend_handles_labels()
    for place, c in enumerate(configurations):
        handles += panel.plot([], [], "o-", color=_color(place), markersize=4)
        labels.append(c.label)
    legend = figure.legend(handles, ["-"] * len(labels), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        # Set afterwards, as a legend leaves out labels that begin with _, and literally, as a name may have dollars.
        text.set(text=label, parse_math=False)


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _offsets(count: int) -> list[float]:
    """Return evenly spaced x offsets in [-0.25, 0.25] for `count` points."""
    return [0.0] if count == 1 else [0.5 * index / (count - 1) - 0.25 for index in range(count)]


DRAWINGS: dict[str, Callable[[Sequence[Configuration]], Figure]] = {
    "scores": plot_scores,
    "size": plot_size,
    "rates": plot_rates,
    "slots": plot_slot_errors,
    "loss": plot_loss,
    "dev": plot_dev_scores,
    "schedule": plot_schedule,
}
"""Every figure by the name of its file."""
