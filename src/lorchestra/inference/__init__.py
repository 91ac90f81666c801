"""Prediction with all members in packed passes; the trunk runs once for the ensemble."""
