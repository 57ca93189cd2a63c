"""Scores of files and runs, and the model card that states them."""
