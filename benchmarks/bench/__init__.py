"""What `speed.py` measures, and beside what."""
