"""Sweeps: a grid of configurations, trained as few packed passes, one finished run directory a point."""
