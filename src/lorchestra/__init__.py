"""LoRA ensembles: many adapters on one frozen LLM, trained together."""
