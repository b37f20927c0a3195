"""Newton-CG (Hessian-free, truncated Newton) optimisation for JAX.

A pure optax transformation: :func:`newton_cg` for deterministic problems,
:func:`hessian_free` for networks, :func:`scientific` for physics-informed ones,
:func:`kronecker_adam` and :func:`stochastic_hessian_free` for mini-batches,
:func:`minimize` for a whole solve.

The names here are the optimizers and the factories of their parts. What the parts are
(:class:`ncg_optax.solvers.Solver`, say), their states and their results are in the
folder of each: ``curvature``, ``solvers``, ``preconditioners``, ``globalization``,
``step``, ``minibatch``, ``minimization``, ``diagnostics``.
"""

import importlib

from ncg_optax import parallel as parallel
from ncg_optax._utils.reductions import value_and_grad
from ncg_optax._utils.status import Status, explain
from ncg_optax.curvature.fisher import empirical_fisher
from ncg_optax.curvature.gauss_newton import gauss_newton
from ncg_optax.curvature.hessian import hessian
from ncg_optax.curvature.sampling.settings import sampling
from ncg_optax.diagnostics.check_operator import check_operator
from ncg_optax.diagnostics.diagnose import diagnose
from ncg_optax.evidence.fit import bayesian_fit
from ncg_optax.globalization.armijo import armijo
from ncg_optax.globalization.damping import levenberg_marquardt
from ncg_optax.globalization.safeguard import safeguard
from ncg_optax.losses.composite import CompositeLoss
from ncg_optax.minibatch.average import averaged_params
from ncg_optax.minibatch.transform import kronecker_adam
from ncg_optax.minimization.covariance import covariance
from ncg_optax.minimization.minimize import minimize
from ncg_optax.parallel.train_step import make_train_step
from ncg_optax.preconditioners.base import identity
from ncg_optax.preconditioners.compose import compose
from ncg_optax.preconditioners.jacobi import jacobi
from ncg_optax.preconditioners.kronecker import kronecker
from ncg_optax.preconditioners.nystrom import nystrom
from ncg_optax.presets import hessian_free, newton_cg, stochastic_hessian_free
from ncg_optax.scientific_preset import scientific
from ncg_optax.solvers.averaged_gradient import averaged_gradient
from ncg_optax.solvers.cg import cg
from ncg_optax.solvers.minres import minres
from ncg_optax.solvers.plane_momentum import quadratic_momentum
from ncg_optax.solvers.residual_space.solver import residual_space
from ncg_optax.solvers.secant_pairs import quasi_newton
from ncg_optax.solvers.trust_region import steihaug
from ncg_optax.step.info import get_info
from ncg_optax.step.transform import scale_by_newton_cg
from ncg_optax.switch import switch_after

__version__ = "0.6.3"

__all__ = [
    "CompositeLoss",
    "Status",
    "armijo",
    "averaged_gradient",
    "averaged_params",
    "bayesian_fit",
    "cg",
    "check_operator",
    "compose",
    "covariance",
    "diagnose",
    "empirical_fisher",
    "explain",
    "gauss_newton",
    "get_info",
    "hessian",
    "hessian_free",
    "identity",
    "jacobi",
    "kronecker",
    "kronecker_adam",
    "levenberg_marquardt",
    "make_train_step",
    "minimize",
    "minres",
    "newton_cg",
    "nystrom",
    "quadratic_momentum",
    "quasi_newton",
    "residual_space",
    "safeguard",
    "sampling",
    "scale_by_newton_cg",
    "scientific",
    "steihaug",
    "stochastic_hessian_free",
    "switch_after",
    "value_and_grad",
]

# Modules that need an optional dependency: imported when they are first used.
_LAZY = {"watch": "ncg_optax.diagnostics.watch", "flax": "ncg_optax.flax"}


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module 'ncg_optax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
