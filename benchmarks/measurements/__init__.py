"""Measurements of a step: memory, precision, preconditioners, a GPU."""
