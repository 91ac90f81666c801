"""Torch parts: packing, attention, LoRA layers, stacked adapters, KV cache, optimizer. No transformers."""
