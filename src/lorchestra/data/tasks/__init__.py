"""Named tasks: a name identifies fixed rows, whichever source they come from."""
