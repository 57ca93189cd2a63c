"""The scores of the dev set after each epoch, as a table."""

import math
from collections.abc import Sequence

from lora_dist.metrics.suite import METRICS
from lora_dist.report.results import Result
from lora_dist.report.tables import Table
from lora_dist.training.log_rows import DEV


def epoch_table(results: Sequence[Result]) -> Table | None:
    """Build the table of dev scores by run and epoch; None if no run has any."""
    rows = []
    for result in results:
        for scores in result.dev_scores():
            values = [f"{scores[name]:.4f}" if name in scores else "-" for name in (DEV + metric for metric in METRICS)]
            selected = "yes" if scores["step"] == result.selected_step else ""
            rows.append((result.name, str(math.ceil(scores["epoch"])), *values, selected))
    if not rows:
        return None
    notes = ["Selected is the epoch whose adapter is the run's: the last, or the one with the best BLEU here"]
    if any("-" in row for row in rows):
        notes.append("METEOR, ROUGE_L and CIDEr need Java, which was missing where they are left out")
    return Table("Dev scores after each epoch", ("Run", "Epoch", *METRICS, "Selected"), tuple(rows), tuple(notes))
