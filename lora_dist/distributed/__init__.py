"""Processes, devices, and communication between the ranks of a run."""
