"""Tables and pictures, made from saved predictions and metrics alone."""
