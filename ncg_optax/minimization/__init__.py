"""Whole minimisations on the device."""

from ncg_optax.minimization.minimize import MinimizeResult

__all__ = ["MinimizeResult"]
