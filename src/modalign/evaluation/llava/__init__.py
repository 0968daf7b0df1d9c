"""A refined image tower inside a LLaVA: answers to questions about pictures, and LoRA tuning with its 2×2 table."""
