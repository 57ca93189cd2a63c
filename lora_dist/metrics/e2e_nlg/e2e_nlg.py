"""The five official scores as a metric of Hugging Face's `evaluate`.

    metric = evaluate.load(str(lora_dist.metrics.suite.E2E_NLG))
    metric.compute(predictions=["The Eagle is a pub."], references=[["The Eagle is a cheap pub.", "A pub, The Eagle."]])

Nothing is downloaded. `evaluate` copies this file into its cache and runs it from there, so it must not depend on
other files of this folder.
"""

from typing import Any, Literal

import datasets
import evaluate

from lora_dist.metrics import suite

_DESCRIPTION = """\
The five metrics of the E2E NLG Challenge with the values that its official script (e2e-metrics) prints: BLEU, NIST,
METEOR 1.5, ROUGE_L and CIDEr. They are corpus scores. The mean over shards differs from the score of the whole set, so
gather all predictions and compute once.
"""

_CITATION = """\
@article{dusek2020evaluating,
  title = {Evaluating the State-of-the-Art of End-to-End Natural Language Generation: The {E2E NLG} Challenge},
  author = {Du{\\v{s}}ek, Ond{\\v{r}}ej and Novikova, Jekaterina and Rieser, Verena},
  journal = {Computer Speech \\& Language},
  volume = {59},
  pages = {123--156},
  year = {2020}
}
"""

_INPUTS = """\
Args:
    predictions: One text per instance.
    references: For each instance a list of human references, or one reference as a string.
    mteval: Variant of BLEU and NIST: "perl" (default) is what the official script prints by default, "python" what it
        prints with -p.

Returns:
    A dictionary with BLEU, METEOR and ROUGE_L (0 to 1), NIST (bits) and CIDEr (0 to 10).
"""

_STRING = datasets.Value("string")


class E2ENLG(evaluate.Metric):  # type: ignore[misc]  # evaluate is untyped
    """BLEU, NIST, METEOR, ROUGE_L and CIDEr of the E2E NLG Challenge."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": _STRING, "references": datasets.Sequence(_STRING)}),
                datasets.Features({"predictions": _STRING, "references": _STRING}),
            ],
            homepage="https://github.com/tuetschek/e2e-metrics",
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]] | list[str],
        mteval: Literal["perl", "python"] = "perl",
    ) -> dict[str, Any]:
        groups = [[group] if isinstance(group, str) else group for group in references]
        return dict(suite.score(groups, predictions, mteval))
