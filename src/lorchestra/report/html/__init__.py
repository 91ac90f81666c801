"""Finished and evaluated runs as one HTML page that opens offline; no model is loaded."""
