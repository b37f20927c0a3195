"""What makes steps safe far from a minimum: damping and line searches."""

from ncg_optax.globalization.armijo import LineSearch, SearchResult
from ncg_optax.globalization.damping import Damping, LevenbergMarquardtState
from ncg_optax.solvers.base import Outcome

__all__ = [
    "Damping",
    "LevenbergMarquardtState",
    "LineSearch",
    "Outcome",
    "SearchResult",
]
