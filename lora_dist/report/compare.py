"""Comparison of two runs: settings, scores with a paired test, and the sentences that differ."""

from dataclasses import fields
from typing import Any

from lora_dist.config import Settings
from lora_dist.config_io import as_options
from lora_dist.errors import UserError
from lora_dist.evaluation.scoring import RUN_RESAMPLES, mteval_variant, score_files
from lora_dist.metrics.suite import METRICS
from lora_dist.report.results import Result, load_results
from lora_dist.report.tables import Table, markdown
from lora_dist.run_dir import RunDir


def compare(a: RunDir, b: RunDir) -> str:
    """Compare run `b` with run `a` and return Markdown.

    Raises:
        UserError: if a run has not been decoded, or the two have different references.
    """
    first, second = load_results([a, b])
    if a.references_text.read_bytes() != b.references_text.read_bytes():
        raise UserError(
            f"{a.root} and {b.root} have different references: decode both with the same test set and --decode.limit"
        )
    tables = _settings_table(first, second), _paired_scores_table(first, second), _sentences_table(first, second)
    return "\n".join(map(markdown, tables))


def _settings_table(first: Result, second: Result) -> Table:
    a, b = _settings_and_versions(first), _settings_and_versions(second)
    pairs = {name: (str(a.get(name)), str(b.get(name))) for name in {**a, **b}}  # a version may be missing
    rows = tuple((name, *pair) for name, pair in pairs.items() if pair[0] != pair[1])
    notes = () if rows else ("none",)
    return Table("Settings that differ", ("", first.name, second.name), rows, notes)


def _settings_and_versions(result: Result) -> dict[str, Any]:
    sections = [field.name for field in fields(Settings)]
    world = result.config["world"] or {"processes": None, "strategy": None, "precision": None}
    return {
        "base model": result.settings.model.name,
        **as_options(result.settings, *sections),
        **{name: world[name] for name in ("processes", "strategy", "precision")},
        "adapter": result.decoding["adapter"][:16],
        "base model fingerprint": result.decoding["base"][:16],
        **{f"scorer of {name}": result.scores["signature"][name] for name in METRICS},
        **{f"version of {name}": version for name, version in result.decoding["versions"].items()},
    }


def _paired_scores_table(first: Result, second: Result) -> Table:
    scored = score_files(
        second.run.references_text,
        second.run.outputs_text,
        mteval_variant(second.scores),
        resamples=RUN_RESAMPLES,
        against=first.run.outputs_text,
    )
    against = scored["against"]
    rows: list[tuple[str, ...]] = [
        (
            metric,
            f"{scored[metric] - against['difference'][metric]:.4f}",
            f"{scored[metric]:.4f}",
            f"{against['difference'][metric]:+.4f}",
            "[{:+.4f}, {:+.4f}]".format(*against["interval"][metric]),
            f"{against['p'][metric]:.3f}",
        )
        for metric in METRICS
    ]
    rate_a, rate_b = first.slot_error_rate, second.slot_error_rate
    if rate_a is not None and rate_b is not None:
        rows.append(("slot errors", f"{rate_a:.2%}", f"{rate_b:.2%}", f"{rate_b - rate_a:+.2%}", "", ""))
    head = ("", first.name, second.name, "difference", "95 % interval", "p")
    notes = (
        f"Intervals, one-sided p: paired bootstrap over the test instances, {RUN_RESAMPLES:,} resamples (Koehn 2004)",
    )
    return Table("Scores", head, tuple(rows), notes)


def _sentences_table(first: Result, second: Result) -> Table:
    pairs = list(zip(first.instances.sources, first.instances.outputs, second.instances.outputs, strict=True))
    rows = tuple((str(place), *texts) for place, texts in enumerate(pairs) if texts[1] != texts[2])
    title = f"Sentences that differ: {len(rows)} of {len(pairs)}"
    return Table(title, ("index", "meaning representation", first.name, second.name), rows)
