"""Methods that end in one `Predictions`: one file each, one contract (`contract`), listed by name in `registry`."""
