"""A finished and evaluated run as one HTML page that opens offline; no model is loaded."""
