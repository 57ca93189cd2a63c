"""The five metrics of the E2E NLG Challenge, without torch."""
