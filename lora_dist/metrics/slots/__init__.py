"""The slot error rate."""
