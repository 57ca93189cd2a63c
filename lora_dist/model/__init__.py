"""GPT-2 with LoRA: loading, the forward pass, reading and writing adapters."""
