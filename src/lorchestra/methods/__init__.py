"""One file a method; each ends in one `Predictions`."""
