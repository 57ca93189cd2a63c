"""Measurements next to other programs that do the same job, in one run on one machine."""
