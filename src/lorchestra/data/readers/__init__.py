"""File formats: bytes to rows of named cells, one at a time. What the cells mean is decided in `data.files`."""
