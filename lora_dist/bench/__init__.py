"""Benchmarks: our programs and others that do the same work, measured in one run on one machine."""
