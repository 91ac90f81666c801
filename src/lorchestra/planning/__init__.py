"""Memory and time of a training, before it is run; the default token budget."""
