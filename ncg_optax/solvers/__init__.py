"""Solvers of the damped Newton system."""

from ncg_optax.solvers.base import (
    DirectSolver,
    KrylovSolver,
    Model,
    Solver,
    SolverResult,
)
from ncg_optax.solvers.cg import CGState
from ncg_optax.solvers.linear_cg import conjugate_gradient
from ncg_optax.solvers.minres import minimum_residual
from ncg_optax.solvers.plane_momentum import QuadraticMomentumState
from ncg_optax.solvers.residual_space.solver import ResidualSpaceState
from ncg_optax.solvers.secant_pairs import QuasiNewtonState, SecantPairs
from ncg_optax.solvers.trust_region import SteihaugState

__all__ = [
    "CGState",
    "DirectSolver",
    "KrylovSolver",
    "Model",
    "QuadraticMomentumState",
    "QuasiNewtonState",
    "ResidualSpaceState",
    "SecantPairs",
    "Solver",
    "SolverResult",
    "SteihaugState",
    "conjugate_gradient",
    "minimum_residual",
]
