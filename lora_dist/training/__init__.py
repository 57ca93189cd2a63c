"""Training: from a frozen GPT-2 and the corpus to an adapter."""
