"""The evidence: which ensembles are worth their cost, on real tasks, in several sizes and seeds."""
