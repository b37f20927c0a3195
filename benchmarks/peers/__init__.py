"""Optimizers to compare with that no package offers for JAX."""
