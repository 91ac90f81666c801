"""Tasks by name: a name stands for fixed rows, whatever source they come from."""
