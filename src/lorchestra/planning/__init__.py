"""Memory and time of a training run, estimated before it starts; the default token budget."""
