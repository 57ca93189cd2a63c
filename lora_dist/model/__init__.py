"""GPT-2 with LoRA: loading, the forward pass, adapters in and out."""
