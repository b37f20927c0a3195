"""Whole minimisations on the device."""

from ncg_optax.minimization.covariance import Covariance
from ncg_optax.minimization.result import MinimizeResult

__all__ = ["Covariance", "MinimizeResult"]
