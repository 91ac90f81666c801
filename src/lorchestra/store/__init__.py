"""Files: atomic writes, checksums, the run directory."""
