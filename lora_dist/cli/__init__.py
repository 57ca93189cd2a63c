"""The command line; `main` runs a command from Python, too, and returns its exit code."""

from lora_dist.cli.main import main

__all__ = ["main"]
