"""Damping rules and line searches, which make steps safe far from a minimum."""

from ncg_optax.globalization.base import (
    Damping,
    Line,
    LineSearch,
    Outcome,
    SearchResult,
)
from ncg_optax.globalization.damping import LevenbergMarquardtState

__all__ = [
    "Damping",
    "LevenbergMarquardtState",
    "Line",
    "LineSearch",
    "Outcome",
    "SearchResult",
]
