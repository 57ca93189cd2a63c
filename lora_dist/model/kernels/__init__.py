"""The few functions whose best form differs between a CPU and a GPU."""
