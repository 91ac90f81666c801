"""Training and prediction of all members in packed passes."""
