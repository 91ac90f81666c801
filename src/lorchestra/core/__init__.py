"""The numerics: packed multi-member LoRA, attention, optimizer, objective, predictive distribution, metrics."""
