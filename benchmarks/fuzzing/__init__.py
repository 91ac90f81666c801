"""Input that fights back: damaged task files, recipes and run directories, and what a case must end in."""
