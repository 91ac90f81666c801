"""All settings: configuration classes, their checks, and how YAML files become them."""
