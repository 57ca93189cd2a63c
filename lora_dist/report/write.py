"""Write the report: the paper's tables with runs next to its rows, as Markdown and as one HTML page."""

from collections.abc import Sequence
from dataclasses import replace

from lora_dist.data.corpora import E2E
from lora_dist.errors import UserError
from lora_dist.files import write_text
from lora_dist.report.configurations import configurations, one_per_adapter
from lora_dist.report.epochs import epoch_table
from lora_dist.report.page import provenance, render_page
from lora_dist.report.plots import Plot, make_plots
from lora_dist.report.published import Choice
from lora_dist.report.results import Result, load_results
from lora_dist.report.tables import (
    Table,
    adapter_table,
    cost_table,
    decoding_table,
    hyperparameter_table,
    improvement_table,
    markdown,
    run_table,
    score_table,
)
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import has_content, is_run, require_folder, require_writable

TITLE = "LoRA on GPT-2: the E2E NLG Challenge"


def write_report(runs: Sequence[RunDir], target: RunDir, published: Choice = "all") -> str:
    """Write report.md, report.html and the plots for `runs` to `target`; return Table 3 and the paths.

    Runs that have not been scored since they were decoded are scored first.

    Args:
        runs: the runs.
        target: where the report is written.
        published: published rows in Tables 3 and 4; there are none next to runs on another corpus than E2E.

    Raises:
        UserError: if a folder is not a run, a run has not been decoded, or `target` cannot be written to, or is neither
            a run nor holds a report or runs; or if the runs are on different corpora.
    """
    check_report_folder(target)
    results = load_results(list({run.root.resolve(): run for run in runs}.values()))
    if _corpus(results) != E2E.name:
        published = "none"
    groups = configurations(one_per_adapter(results))
    scores = score_table(groups, published)
    scores = replace(scores, notes=(*scores.notes, *_why_no_slot_errors(results)))
    improvements = improvement_table(groups, published)
    decodings, epochs = decoding_table(results), epoch_table(results)
    tables = [
        scores,
        *([improvements] if improvements.rows else []),
        adapter_table(groups),
        hyperparameter_table(groups),
        cost_table(groups),
        *([decodings] if decodings is not None else []),
        *([epochs] if epochs is not None else []),
        run_table(results),
    ]
    plots, notes = make_plots(groups)
    for plot in plots:
        write_text(target.plots / f"{plot.name}.svg", plot.svg)
    write_text(target.report_markdown, _markdown(tables, plots, notes, results))
    write_text(target.report_html, render_page(TITLE, tables, plots, notes, results))
    return f"{markdown(scores)}\nreport in {target.report_markdown} and {target.report_html}"


def _corpus(results: Sequence[Result]) -> str:
    """Return the corpus of all runs.

    Raises:
        UserError: if they have different ones.
    """
    first = results[0]
    for result in results:
        if result.corpus != first.corpus:
            raise UserError(
                f"{first.run.root} is on {first.corpus} and {result.run.root} on {result.corpus}, whose scores do not "
                "compare: write a report for each"
            )
    return first.corpus


def _why_no_slot_errors(results: Sequence[Result]) -> list[str]:
    """Return the note for the dashes of the runs whose slot errors cannot be counted, of which one reason is enough."""
    reasons = [result.scores.get("slot_error_rate", {}).get("reason") for result in results]
    return [f"No slot error rate: {reason}" for reason in reasons if reason][:1]


def check_report_folder(target: RunDir, *, begun: bool = False) -> None:
    """Refuse a folder in which a report would be among, or replace, other files than ours.

    Args:
        target: the folder.
        begun: whether it is known to be a folder of runs, although it may have none yet.

    Raises:
        UserError: if it is neither empty, nor a run, nor holds an earlier report or runs.
    """
    require_folder(target)
    for folder in (target.root, target.plots):
        require_writable(folder)
    if not has_content(target.root) or is_run(target.root):
        return
    if target.report_markdown.is_file():
        ours = target.report_markdown.read_text(encoding="utf-8", errors="replace").startswith(f"# {TITLE}\n")
    else:
        ours = not target.report_html.exists() and (begun or any(map(is_run, target.root.iterdir())))
    if not ours:
        raise UserError(
            f"--out {target.root} is not the folder of a run, of runs or of a report, so nothing is written there: "
            "name another folder"
        )


def _markdown(tables: Sequence[Table], plots: Sequence[Plot], notes: Sequence[str], results: Sequence[Result]) -> str:
    parts = [f"# {TITLE}\n", *map(markdown, tables)]
    parts += [f"## {plot.title}\n\n![{plot.title}](plots/{plot.name}.svg)\n" for plot in plots]
    parts += [f"{note}\n" for note in notes]
    parts.append("## How it was made\n")
    for result in results:
        command, versions = provenance(result)
        parts.append(f"- {result.name}: `{command}` ({versions})")
    return "\n".join(parts) + "\n"
