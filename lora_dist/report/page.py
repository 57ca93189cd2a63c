"""The report as one self-contained HTML page: tables, plots, commands, and a browser over the test set."""

import html
import shlex
from collections.abc import Sequence
from importlib import resources

from lora_dist.config_io import command_line
from lora_dist.report.browser import browser_data, to_script_json
from lora_dist.report.plots import Plot
from lora_dist.report.results import Result
from lora_dist.report.tables import Table


def render_page(
    title: str, tables: Sequence[Table], plots: Sequence[Plot], notes: Sequence[str], results: Sequence[Result]
) -> str:
    """Render the page. It loads nothing from elsewhere, and all text of the runs is escaped.

    Args:
        title: Heading of the page.
        tables: Tables in the order shown.
        plots: Plots in the order shown, below the tables.
        notes: What is said below the plots.
        results: Runs that the browser shows.
    """
    sections = [_table_section(number, table) for number, table in enumerate(tables)]
    figures = "".join(
        f'<figure class="scroll"><figcaption>{html.escape(plot.title)}</figcaption>{plot.inline_svg()}</figure>'
        for plot in plots
    )
    return _PAGE.format(
        title=html.escape(title),
        css=_asset("page.css"),
        links="".join(f'<a href="#table{n}">{html.escape(t.title.split(":")[0])}</a>' for n, t in enumerate(tables)),
        tables="".join(sections),
        figures=figures + "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        origins="".join(map(_provenance_entry, results)),
        data=to_script_json(browser_data(results)),
        script=_asset("page.js"),
    )


def provenance(result: Result) -> tuple[str, str]:
    """Return the command that reproduces the run, and its versions and fingerprints."""
    world = result.config["world"] or {"processes": 1, "precision": "unknown"}
    launcher = "ACCELERATE_MIXED_PRECISION=no lora-dist" if world["precision"] == "fp32" else "lora-dist"
    if world["processes"] > 1:
        launcher = f"accelerate launch --config_file accelerate_configs/{world['strategy']}.yaml"
        launcher += f" --num_processes {world['processes']}"
        launcher += " --mixed_precision no -m lora_dist" if world["precision"] == "fp32" else " -m lora_dist"
    command = f"{launcher} {command_line(result.settings)} --out {shlex.quote(str(result.run.root))}"
    if not result.trained_here:
        command = "trained elsewhere"
    versions = {**result.config["versions"], "precision": world["precision"]}
    versions |= {"adapter": result.decoding["adapter"][:16]}
    versions |= {"base": result.decoding["base"][:16], "test data": result.decoding["test_data"][:16]}
    versions |= {name: result.scores["signature"][name] for name in ("BLEU", "METEOR")}
    return command, ", ".join(f"{name} {value}" for name, value in versions.items())


def _provenance_entry(result: Result) -> str:
    command, versions = provenance(result)
    return (
        f"<dt>{html.escape(result.name)}</dt><dd><code>{html.escape(command)}</code><br>"
        f'<span class="scores">{html.escape(versions)}</span></dd>'
    )


def _table_section(number: int, table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    kind = " class=sourced" if "Source" in table.head else ""  # its cells wrap
    body = "".join(
        f"<tr{' class=run' if 0 < table.num_published <= index else ''}>"
        + "".join(f"<td>{html.escape(cell).replace('± ', '±&nbsp;')}</td>" for cell in cells)
        + "</tr>\n"
        for index, cells in enumerate(table.rows)
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f'<h2 id="table{number}">{html.escape(table.title)}</h2>\n<div class="scroll"><table{kind}><thead>'
        f"<tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def _asset(name: str) -> str:
    return resources.files("lora_dist.report").joinpath(name).read_text(encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}<a href="#plots">Plots</a><a href="#origin">How it was made</a><a href="#browser">Sentences</a></nav>
{tables}<h2 id="plots">Plots</h2>
{figures}
<h2 id="origin">How it was made</h2>
<dl>{origins}</dl>
<section id="browser">
<h2>Sentences</h2>
<p class="scores">Highlighted: verbatim slot values. ✓ and ✗: the rules of the slot error rate.</p>
<div class="controls">
<input id="search" type="search" placeholder="search meaning representations and sentences" aria-label="search">
<label>show <select id="filter">
<option value="all">all</option>
<option value="errors">with slot errors</option>
<option value="differ">where the runs differ</option>
</select></label>
<input id="threshold" type="number" value="0.5" step="0.05" min="0" aria-label="score below" hidden>
<label>sort <select id="sort">
<option value="order">official order</option>
<option value="errors">most slot errors first</option>
</select></label>
<label>of run <select id="by"></select></label>
<span id="count" class="number"></span>
</div>
<fieldset id="runs" aria-label="runs shown side by side"></fieldset>
<div id="list"></div>
<button id="more" type="button">show more</button>
</section>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""
