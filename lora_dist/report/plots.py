"""The report's plots as SVG, drawn under matplotlib's own defaults, whatever the user's settings are."""

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lora_dist.report.configurations import Configuration

log = logging.getLogger(__name__)

FOREGROUND, BACKGROUND = "#010203", "#fdfefd"
"""Placeholders for the colors of text and lines, and of the background; `Plot.inline_svg` replaces them."""


class Plot(NamedTuple):
    """One figure of the report."""

    name: str
    """File name without suffix."""
    title: str
    svg: str

    def inline_svg(self) -> str:
        """Return the SVG element for inlining in HTML, in the colors of the page."""
        element = self.svg[self.svg.index("<svg") :]
        return element.replace(FOREGROUND, "currentColor").replace(BACKGROUND, "none")


def make_plots(configurations: Sequence[Configuration]) -> tuple[list[Plot], list[str]]:
    """Draw the plots, leaving out those for which no run has the data.

    Returns:
        The plots, and a note for each one that could not be drawn, which costs nothing else.
    """
    logged = any(result.logged_steps() for c in configurations for result in c.results)
    scored = any(result.dev_scores() for c in configurations for result in c.results)
    rates = {c.first.settings.train.learning_rate for c in configurations}
    slots = any(result.slot_error_rate is not None for c in configurations for result in c.results)
    plots, notes = [], []
    for name, title, has_data in (
        ("scores", "Scores: 95 % intervals (points), standard deviations; lines: the paper, next to runs on E2E", True),
        ("size", "Scores vs. trainable params", True),
        ("rates", "Scores vs. learning rate, with standard deviations over the seeds", len(rates) > 1),
        ("slots", "Slot errors by attribute", slots),
        ("loss", "Training loss (lines) and dev loss (points)", logged),
        ("dev", "Dev scores after each epoch (large points: the epoch of the adapter)", scored),
        ("schedule", "Learning rate and throughput", logged),
    ):
        if not has_data:
            continue
        try:
            plots.append(Plot(name, title, _draw(name, configurations)))
        except Exception as error:  # of matplotlib, its fonts or the settings that it reads as it is imported
            reason = (str(error).strip().splitlines() or [""])[0]
            notes.append(f"The plot {name} could not be drawn: {type(error).__name__}: {reason}")
            log.warning(notes[-1])
    return plots, notes


def _draw(name: str, configurations: Sequence[Configuration]) -> str:
    with _without_backend():
        import matplotlib as mpl

        from lora_dist.report import drawings
    draw: Callable[[Sequence[Configuration]], Any] = drawings.DRAWINGS[name]
    # No canvas of a user interface is needed: a figure without pyplot saves itself with matplotlib's own SVG canvas.
    with warnings.catch_warnings(), mpl.rc_context(mpl.rcParamsDefault):
        warnings.simplefilter("ignore")  # a name may have letters that the default font lacks; the page's has them
        return _to_svg(name, draw(configurations))


@contextmanager
def _without_backend() -> Iterator[None]:
    """Import matplotlib in the block although MPLBACKEND names a backend that only a notebook has."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _to_svg(name: str, figure: Any) -> str:
    """Render a figure as SVG with ids that depend on `name`, so that one page can hold several figures.

    Args:
        name: the plot's name.
        figure: a figure of `drawings`.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    # Text stays text: it is searchable and uses the font of the page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8}):
        figure.patch.set_facecolor(BACKGROUND)
        for panel in figure.axes:
            panel.set_facecolor(BACKGROUND)
            panel.spines[["top", "right"]].set_visible(False)
            for spine in panel.spines.values():
                spine.set_color(FOREGROUND)
            panel.tick_params(which="both", colors=FOREGROUND, labelsize=8)
            for text in (panel.title, panel.xaxis.label, panel.yaxis.label):
                text.set_color(FOREGROUND)
                text.set_fontsize(9)
        for legend in figure.legends:
            for text in legend.get_texts():
                text.set_color(FOREGROUND)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()
