"""The five metrics of the E2E NLG Challenge and the slot error rate, without torch."""
