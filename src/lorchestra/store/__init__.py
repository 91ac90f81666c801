"""Files: the run directory, output directories and their locks, atomic writes, checked JSON records."""
