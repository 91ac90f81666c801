"""Lockstep training of all members in packed passes."""
