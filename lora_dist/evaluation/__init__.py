"""Scores of files and runs, and the model card that reports them."""
