"""The report's plots as SVG: what the runs did while they trained, and what came of it beside the paper's lines."""

import io
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lora_dist.metrics.slots.errors import ATTRIBUTES
from lora_dist.metrics.suite import METRICS
from lora_dist.report.published import PAPER, TRAINABLE
from lora_dist.report.results import Configuration, Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, "Color Universal Design": people who do not see some colours tell them apart, on light and dark."""
PAPER_LINES = ("Baseline (GPT-2 S)", "Original (GPT-2 M)", "Improved")
INK, SHEET = "#010203", "#fdfefd"
"""What is drawn as text and lines, and as background; a page that is light or dark puts its own in their place."""
WIDTH = 10.0
"""Inches."""


class Plot(NamedTuple):
    """A figure for page and file."""

    name: str
    """Of its file, without the ending."""
    title: str
    svg: str

    def for_page(self) -> str:
        """The SVG in the page's own colours, to be put into it as it is."""
        drawing = self.svg[self.svg.index("<svg") :]
        return drawing.replace(INK, "currentColor").replace(SHEET, "none")


def make_plots(configurations: Sequence[Configuration]) -> list[Plot]:
    """Those for which the runs have what they show."""
    logged = any(result.logged_steps() for c in configurations for result in c.results)
    slots = any(result.slot_error_rate is not None for c in configurations for result in c.results)
    drawn: list[tuple[str, str, Callable[[Sequence[Configuration]], Figure], bool]] = [
        ("scores", "Scores with 95 % intervals, and the paper's lines", _scores, True),
        ("size", "Score against trained numbers", _size, True),
        ("slots", "Slot errors by attribute", _slots, slots),
        ("loss", "Loss while training (lines) and on the dev set (points)", _loss, logged),
        ("schedule", "Learning rate and throughput", _schedule, logged),
    ]
    return [Plot(name, title, _svg(name, draw(configurations))) for name, title, draw, wanted in drawn if wanted]


def _scores(configurations: Sequence[Configuration]) -> Figure:
    """A panel a metric: each seed with its interval, the mean, and lines for the paper's rows."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(METRICS))
    for column, (panel, metric) in enumerate(zip(panels, METRICS, strict=True)):
        _paper_lines(panel, column)
        for place, c in enumerate(configurations):
            colour = _colour(place)
            for shift, result in zip(_shifts(len(c.results)), c.results, strict=True):
                value = result.values[column]
                low, high = result.scores.get("bootstrap", {}).get(metric, (value, value))
                panel.plot([place + shift] * 2, [low, high], color=colour, linewidth=1, alpha=0.6)
                panel.plot(place + shift, value, "o", color=colour, markersize=4)
            panel.plot([place - 0.35, place + 0.35], [c.mean()[column]] * 2, color=colour, linewidth=2)
        panel.set_title(metric)
        panel.set_xticks([])
        panel.set_xlim(-0.6, len(configurations) - 0.4)
    _legend(figure, panels[0], configurations)
    return figure


def _size(configurations: Sequence[Configuration]) -> Figure:
    """A panel a metric: means against trained numbers, ours and the paper's."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, len(METRICS))
    for column, (panel, metric) in enumerate(zip(panels, METRICS, strict=True)):
        for published in PAPER:
            if published.name in TRAINABLE:
                panel.plot(TRAINABLE[published.name], published.scores[column], "s", color=INK, markersize=4)
        for place, c in enumerate(configurations):
            spread = (c.spread() or (0.0,) * len(METRICS))[column]
            panel.errorbar(c.first.trainable, c.mean()[column], spread, fmt="o", color=_colour(place), markersize=5)
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        counts = [*TRAINABLE.values(), *(c.first.trainable for c in configurations)]
        panel.set_xlim(10 ** math.floor(math.log10(min(counts))), 10 ** math.ceil(math.log10(max(counts))))
        panel.set_title(metric)
        panel.set_xlabel("trained numbers")
    panels[0].plot([], [], "s", color=INK, markersize=4, label="paper")
    _legend(figure, panels[0], configurations)
    return figure


def _slots(configurations: Sequence[Configuration]) -> Figure:
    """Bars of missing, added and contradicted slots by attribute, means over the seeds."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(configurations)
    for place, c in enumerate(configurations):
        counted = [r.scores["slot_error_rate"] for r in c.results if r.slot_error_rate is not None]
        if not counted:
            continue
        bottom = [0.0] * len(ATTRIBUTES)
        for kind, shade in (("missing", 1.0), ("added", 0.6), ("contradicted", 0.3)):
            heights = [statistics.mean(errors[kind].get(name, 0) for errors in counted) for name in ATTRIBUTES]
            xs = [index - 0.4 + width * (place + 0.5) for index in range(len(ATTRIBUTES))]
            panel.bar(xs, heights, width * 0.9, bottom, color=_colour(place), alpha=shade)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    panel.set_xticks(range(len(ATTRIBUTES)), ATTRIBUTES, rotation=20, ha="right")
    panel.set_ylabel("slots (dark: missing, middle: added,\nlight: contradicted)")
    _legend(figure, panel, configurations)
    return figure


def _loss(configurations: Sequence[Configuration]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panel = figure.subplots()

    def draw(result: Result, colour: str) -> None:
        _line(panel, result.logged_steps(), "loss", colour)
        dev = result.evaluations()
        panel.plot([row["step"] for row in dev], [row["dev_loss"] for row in dev], "o", color=colour, markersize=5)

    _each(configurations, draw)
    panel.set_xlabel("updates")
    panel.set_ylabel("smoothed cross-entropy,\nnats a token")
    _legend(figure, panel, configurations)
    return figure


def _schedule(configurations: Sequence[Configuration]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    rate, throughput = figure.subplots(1, 2)

    def draw(result: Result, colour: str) -> None:
        _line(rate, result.logged_steps(), "lr", colour)
        _line(throughput, result.logged_steps(), "examples_per_second", colour)

    _each(configurations, draw)
    for panel, name in ((rate, "learning rate"), (throughput, "examples a second")):
        panel.set_xlabel("updates")
        panel.set_ylabel(name)
        panel.set_ylim(bottom=0)
    _legend(figure, rate, configurations)
    return figure


def _line(panel: Axes, rows: Sequence[dict[str, Any]], name: str, colour: str) -> None:
    """A value of the log against updates; a long log is thinned to what a plot can show."""
    shown = rows[:: max(1, len(rows) // 500)]
    panel.plot([row["step"] for row in shown], [row[name] for row in shown], color=colour, linewidth=1, alpha=0.8)


def _each(configurations: Sequence[Configuration], draw: Callable[[Result, str], None]) -> None:
    for place, c in enumerate(configurations):
        for result in c.results:
            draw(result, _colour(place))


def _paper_lines(panel: Axes, column: int) -> None:
    styles = zip(PAPER_LINES, ("--", "-.", ":"), strict=True)
    scores = {published.name: published.scores for published in PAPER}
    for name, style in styles:
        panel.axhline(scores[name][column], color=INK, linewidth=0.8, linestyle=style, label=f"{name}, paper")


def _legend(figure: Figure, panel: Axes, configurations: Sequence[Configuration]) -> None:
    """One below the panels: the configurations by colour, and what `panel` has labels for."""
    for place, c in enumerate(configurations):
        panel.plot([], [], "o-", color=_colour(place), markersize=4, label=c.label)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _shifts(count: int) -> list[float]:
    """Places of several points side by side around 0."""
    return [0.0] if count == 1 else [0.5 * index / (count - 1) - 0.25 for index in range(count)]


def _svg(name: str, figure: Figure) -> str:
    """The drawing; its ids begin with `name`, so that several may stand in one page."""
    written = io.StringIO()
    # Text stays text: it can be searched, and takes the page's font.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8}):
        figure.patch.set_facecolor(SHEET)
        for panel in figure.axes:
            panel.set_facecolor(SHEET)
            panel.spines[["top", "right"]].set_visible(False)
            for spine in panel.spines.values():
                spine.set_color(INK)
            panel.tick_params(which="both", colors=INK, labelsize=8)
            for text in (panel.title, panel.xaxis.label, panel.yaxis.label):
                text.set_color(INK)
                text.set_fontsize(9)
        for legend in figure.legends:
            for text in legend.get_texts():
                text.set_color(INK)
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return written.getvalue()
