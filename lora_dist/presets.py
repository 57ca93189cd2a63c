"""The published configurations that a command can start from."""

from dataclasses import dataclass

from lora_dist.config import LoraSettings, Settings


@dataclass(frozen=True)
class Preset:
    """A published configuration."""

    settings: Settings
    summary: str
    """Its line in `--help`."""
    column: str
    """Its column in Table 1 of a report."""
    trainable: str
    """Trainable parameters as published."""


BASELINE = Settings()
IMPROVED = Settings(lora=LoraSettings(rank=16, targets=("c_attn", "c_proj", "c_fc"), init="gaussian"))
_BASELINE = "Table 1 of the paper: rank 4, c_attn, original initialisation"
_IMPROVED = "Table 1 of the paper: rank 16, c_attn, c_proj and c_fc, Gaussian initialisation"
PRESETS = {
    "baseline": Preset(BASELINE, _BASELINE, "Baseline, paper", "0.15M on Small"),
    "improved": Preset(IMPROVED, _IMPROVED, "Improved, paper", "2.36M on Small"),
}
"""Every preset by name: parsing, help, Table 1 and `reproduce` derive from it."""
