"""Tables and figures of saved predictions and metrics; no model is loaded."""
