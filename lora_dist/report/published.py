"""Published scores: the paper's Table 3, and results that users of the LoRA authors' code report."""

from typing import NamedTuple


class Published(NamedTuple):
    """One row of published scores on the whole E2E test set."""

    name: str
    trainable: str
    """Number of trainable parameters as printed."""
    scores: tuple[float, ...]
    """In the order of `suite.METRICS`: NIST in bits, CIDEr 0 to 10, the others 0 to 1."""


PAPER = (
    Published("Baseline (E2E)", "-", (0.6593, 8.6094, 0.4483, 0.6850, 2.2338)),
    Published("Baseline (GPT-2 S)", "0.15M", (0.6476, 8.4059, 0.4381, 0.6588, 2.2413)),
    Published("Original (GPT-2 M)", "0.35M", (0.704, 8.85, 0.468, 0.7180, 2.53)),
    Published("Goal", "-", (0.695, 8.80, 0.464, 0.711, 2.47)),
    Published("Improved", "2.36M", (0.6882, 8.7540, 0.4667, 0.7103, 2.4537)),
)
"""Table 3 of "Finetuning GPT-2 on E2E Using LoRA" (Swift)."""

REPRODUCTIONS = (
    Published("microsoft/LoRA#165, GPT-2 M, V100", "0.35M", (0.6865, 8.6808, 0.4638, 0.7116, 2.503)),
    Published("microsoft/LoRA#165, GPT-2 M, A100", "0.35M", (0.6885, 8.68, 0.4638, 0.7139, 2.5079)),
    Published("microsoft/LoRA#165, GPT-2 M, third", "0.35M", (0.6887, 8.6935, 0.465, 0.7139, 2.5096)),
    Published("microsoft/LoRA#165, GPT-2 S", "-", (0.6727, 8.6009, 0.4571, 0.6814, 2.3076)),
    Published("microsoft/LoRA#138, without pretrained weights", "-", (0.0, 0.0196, 0.0034, 0.0072, 0.0)),
)
"""Scores reported in issues of the LoRA authors' repository for its configuration. The seed paper's own repository
reports the rows of its Table 3."""

PUBLISHED_MODELS = ("gpt2", "gpt2-medium")
"""Hub ids of the base models that these scores are for."""

TRAINABLE = {"Baseline (GPT-2 S)": 147_456, "Original (GPT-2 M)": 393_216, "Improved": 2_359_296}
"""Exact numbers of trainable parameters, computed from the shapes."""
