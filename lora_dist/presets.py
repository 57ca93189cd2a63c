"""The published configurations that a command can start from."""

from dataclasses import dataclass

from lora_dist.config import DecodeSettings, LoraSettings, ModelSettings, Settings


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
ORIGINAL = Settings(
    model=ModelSettings(name="gpt2-medium"),
    lora=LoraSettings(targets=("c_attn.q", "c_attn.v"), init="kaiming"),
    decode=DecodeSettings(length_penalty=0.8),
)
_BASELINE = "Table 1 of the paper: rank 4, c_attn, original initialisation"
_IMPROVED = "Table 1 of the paper: rank 16, c_attn, c_proj and c_fc, Gaussian initialisation"
_ORIGINAL = "LoRA authors, on GPT-2 Medium: rank 4, q and v only, Kaiming-uniform A, length penalty 0.8"
PRESETS = {
    "baseline": Preset(BASELINE, _BASELINE, "Baseline, paper", "0.15M on Small"),
    "improved": Preset(IMPROVED, _IMPROVED, "Improved, paper", "2.36M on Small"),
    "original": Preset(ORIGINAL, _ORIGINAL, "Original, LoRA authors", "0.35M on Medium"),
}
"""Every preset by name: parsing, help, Table 1 and `reproduce` derive from it."""
