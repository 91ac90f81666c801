"""File formats: bytes to rows of named cells, one at a time. `data.files` interprets the cells."""
