"""Measurements of a step: memory, precision, preconditioners, overhead."""
