"""The few functions that are implemented differently for CPUs and GPUs."""
