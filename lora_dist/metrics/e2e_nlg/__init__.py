"""The five scores as a metric that Hugging Face's `evaluate.load` loads from this folder."""
