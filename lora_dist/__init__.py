"""LoRA fine-tuning of GPT-2 on the E2E NLG Challenge, on one device or many."""

__version__ = "0.1.0"
