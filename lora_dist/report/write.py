"""Write the report: the paper's tables with runs next to its rows, as Markdown and as one HTML page."""

from collections.abc import Sequence

from lora_dist.files import write_text
from lora_dist.report.configurations import configurations, one_per_adapter
from lora_dist.report.page import provenance, render_page
from lora_dist.report.plots import Plot, make_plots
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
from lora_dist.run_guard import require_folder, require_writable

TITLE = "LoRA on GPT-2: the E2E NLG Challenge"


def write_report(runs: Sequence[RunDir], target: RunDir) -> str:
    """Write report.md, report.html and the plots for `runs` to `target`; return Table 3 and the paths.

    Runs that have not been scored since they were decoded are scored first.

    Raises:
        UserError: if a folder is not a run, a run has not been decoded, or `target` cannot be written to.
    """
    require_folder(target)
    for folder in (target.root, target.plots):
        require_writable(folder)
    results = load_results(list({run.root.resolve(): run for run in runs}.values()))
    groups = configurations(one_per_adapter(results))
    scores, decodings = score_table(groups), decoding_table(results)
    tables = [
        scores,
        improvement_table(groups),
        adapter_table(groups),
        hyperparameter_table(groups),
        cost_table(groups),
        *([decodings] if decodings is not None else []),
        run_table(results),
    ]
    plots, notes = make_plots(groups)
    for plot in plots:
        write_text(target.plots / f"{plot.name}.svg", plot.svg)
    write_text(target.report_markdown, _markdown(tables, plots, notes, results))
    write_text(target.report_html, render_page(TITLE, tables, plots, notes, results))
    return f"{markdown(scores)}\nreport in {target.report_markdown} and {target.report_html}"


def _markdown(tables: Sequence[Table], plots: Sequence[Plot], notes: Sequence[str], results: Sequence[Result]) -> str:
    parts = [f"# {TITLE}\n", *map(markdown, tables)]
    parts += [f"## {plot.title}\n\n![{plot.title}](plots/{plot.name}.svg)\n" for plot in plots]
    parts += [f"{note}\n" for note in notes]
    parts.append("## How it was made\n")
    for result in results:
        command, versions = provenance(result)
        parts.append(f"- {result.name}: `{command}` ({versions})")
    return "\n".join(parts) + "\n"
