"""Training of all members in lockstep, in packed passes."""
