"""Methods of the comparison: one file each, with a common contract (`contract`), listed by name in `registry`."""
