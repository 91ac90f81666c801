"""Fuzzing: damaged task files, recipes and run directories, and the allowed outcomes of a case."""
