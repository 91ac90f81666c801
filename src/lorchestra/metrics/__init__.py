"""What predictions are worth: mixtures, scores, intervals, diversity, temperatures. NumPy only."""
