"""The measurements of `speed.py`, and the ways they compare."""
