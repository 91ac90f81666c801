"""Settings: configuration classes, their checks, and reading and writing them as YAML."""
