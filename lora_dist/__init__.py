"""LoRA fine-tuning of GPT-2 on the E2E NLG Challenge, on all the devices there are."""

__version__ = "0.1.0"
