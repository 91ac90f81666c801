"""Whole jobs on a run directory: train, evaluate, predict, compare, sweep, import, export, plan; and `Ensemble`."""
