"""Processes, devices, and what the ranks of a run say to each other."""
