"""The paper's figures and ablations as recipes: which points to train, at which scale."""
