"""Task files, splits, prompts, and examples as token ids."""
