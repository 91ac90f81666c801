"""Whole runs: train, evaluate and predict, from a configuration or a run directory."""
