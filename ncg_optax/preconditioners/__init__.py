"""Preconditioners of the solvers."""

from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.preconditioners.compose import ComposeState
from ncg_optax.preconditioners.jacobi import JacobiState
from ncg_optax.preconditioners.kronecker import KroneckerState
from ncg_optax.preconditioners.nystrom import NystromState

__all__ = [
    "ComposeState",
    "JacobiState",
    "KroneckerState",
    "NystromState",
    "Preconditioner",
]
