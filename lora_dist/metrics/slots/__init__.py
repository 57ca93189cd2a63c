"""The slot error rate (SER) of outputs for E2E meaning representations, by rules."""
