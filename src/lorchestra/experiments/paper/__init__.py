"""The paper's experiments: recipes read, scaled by a profile, and trained as sweeps."""
