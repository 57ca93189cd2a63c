"""The paper's Table 3 with runs beside it, as Markdown and as one self-contained page."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from lora_dist.config import UserError
from lora_dist.metrics import METRICS
from lora_dist.run_dir import RunDir, read_json, write_text

PAPER: dict[str, tuple[str, tuple[float, ...]]] = {
    "Baseline (E2E)": ("-", (0.6593, 8.6094, 0.4483, 0.6850, 2.2338)),
    "Baseline (GPT-2 S)": ("0.15M", (0.6476, 8.4059, 0.4381, 0.6588, 2.2413)),
    "Original (GPT-2 M)": ("0.35M", (0.704, 8.85, 0.468, 0.7180, 2.53)),
    "Goal": ("-", (0.695, 8.80, 0.464, 0.711, 2.47)),
    "Improved": ("2.36M", (0.6882, 8.7540, 0.4667, 0.7103, 2.4537)),
}
"""Table 3 of "Finetuning GPT-2 on E2E Using LoRA": trainable parameters, then the scores in the order of METRICS."""


def write_report(runs: Sequence[RunDir], target: RunDir) -> str:
    """Write report.md and report.html for `runs` into `target`; return the Markdown, and where it lies.

    Raises:
        UserError: if a run has no scores yet.
    """
    loaded = [load_row(run) for run in runs]
    rows, notes = [row for row, _ in loaded], [note for _, found in loaded for note in found]
    text = markdown(rows, notes)
    write_text(target.report_markdown, text)
    write_text(target.report_html, page(rows, notes))
    return f"{text}\nreport in {target.report_markdown} and {target.report_html}"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    trainable: str
    scores: tuple[float, ...]
    """In the order of METRICS."""


def load_row(run: RunDir) -> tuple[Row, list[str]]:
    """A run's line, and in which respects it must not be compared with the paper's.

    Raises:
        UserError: if the run has no scores yet.
    """
    config = read_json(run.config, f"{run.root} is not the folder of a run")
    scores = read_json(run.scores, f"{run.root} has no scores yet, decode and score it first")
    signature = scores["signature"]
    settings, decoding = config["settings"], signature.get("decode", {}).get("decode", {})
    if any(metric not in scores for metric in METRICS):
        raise UserError(f"{run.scores} lacks some of {', '.join(METRICS)}: score the run again")
    caveats = []
    if settings["model"]["name"].removeprefix("openai-community/") not in (
        "gpt2",
        "gpt2-medium",
    ):
        caveats.append(f"the base model is {settings['model']['name']}")
    if not signature.get("decode", {}).get("official_test_set"):
        caveats.append("not the whole official test set was decoded")
    if decoding.get("ngram_scope") != "all":
        caveats.append("repeated 4-grams are banned in the sentence alone, the paper's decoder bans the prompt's too")
    row = Row(run.root.name, f"{config['counts']['trainable']:,}", tuple(scores[metric] for metric in METRICS))
    return row, [f"{run.root.name}: {caveat}" for caveat in caveats]


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table and its notes as Markdown."""
    lines = ["# Scores on the E2E NLG Challenge test set", "", _line(_head()), _line(["---"] * len(_head()))]
    lines += [_line(cells) for cells in _body(rows)]
    if notes:
        lines += ["", "Not to be compared with the paper's rows without a second thought:", ""]
        lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table and its notes as one HTML page without outside references."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _head())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n" for cells in _body(rows)
    )
    items = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes)
    return _PAGE.format(head=head, body=body, notes=f"<p>Mind, before comparing:</p><ul>{items}</ul>" if notes else "")


def _head() -> list[str]:
    return ["Model", "Trainable", *METRICS]


def _body(rows: Sequence[Row]) -> list[list[str]]:
    paper = [Row(f"{name}, paper", trainable, scores) for name, (trainable, scores) in PAPER.items()]
    return [[row.name, row.trainable, *(f"{score:.4f}" for score in row.scores)] for row in (*paper, *rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>lora_dist: scores on E2E</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .4rem .6rem; border-bottom: 1px solid #8886; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
</style>
<h1>Scores on the E2E NLG Challenge test set</h1>
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table>
{notes}
</html>
"""
