"""Prediction: the packed loop, the trunk cache, and the pipeline from examples to predictions."""
