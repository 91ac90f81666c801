"""The paper's figures, and those that its readers asked for, as functions of saved predictions."""
