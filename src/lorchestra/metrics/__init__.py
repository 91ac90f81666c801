"""Metrics of predictions: mixtures, scores, intervals, diversity, temperatures, and the typed result. NumPy only."""
