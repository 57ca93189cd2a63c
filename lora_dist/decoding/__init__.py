"""Decoding: beam search over the test set, sharded over the ranks."""
