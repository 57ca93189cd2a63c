"""From the corpus to batches of tensors."""
