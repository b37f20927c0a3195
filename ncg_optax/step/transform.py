"""The transformation. One update has five stages, each with its own result type.

::

  updates, params, value_fn -> read_point     -> Point      gradient, loss, objective
  Point, state              -> build_model    -> StepModel  product, damping, M
  StepModel, solver's state -> find_direction -> Direction  d, g.d, d.Bd
  Direction                 -> try_step       -> Trial      losses along d, the status
  Trial                     -> next_state     -> updates, state, info

A stage reads only the results of earlier stages.
"""

from collections.abc import Callable
from typing import Any

import optax

from ncg_optax.curvature.base import Curvature
from ncg_optax.curvature.hessian import hessian
from ncg_optax.curvature.sampling.settings import Sampling, sampling
from ncg_optax.globalization.armijo import armijo
from ncg_optax.globalization.base import Damping, LineSearch
from ncg_optax.globalization.damping import levenberg_marquardt
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.solvers.base import Solver
from ncg_optax.solvers.cg import cg
from ncg_optax.step.direction import find_direction
from ncg_optax.step.model import build_model
from ncg_optax.step.next_state import next_state, scaled_updates
from ncg_optax.step.point import read_point
from ncg_optax.step.repair import repaired_preconditioner
from ncg_optax.step.settings import complete
from ncg_optax.step.state import first_state, require_own
from ncg_optax.step.trial import try_step

PyTree = Any


def scale_by_newton_cg(
    *,
    curvature: Curvature = hessian(),
    damping: float | optax.Schedule | Damping = levenberg_marquardt(),
    solver: Solver = cg(),
    preconditioner: Preconditioner | None = None,
    linesearch: LineSearch | None = armijo(),
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    sampling: Sampling = sampling(),
    axis_name: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by an approximation of :math:`(B + \lambda I)^{-1} g`.

    This transformation does not change the sign and has no learning rate. So chain it
    with ``optax.scale_by_learning_rate(1.0)`` or an optax line search.
    :func:`newton_cg` is such a chain, and explains the settings.

    Args:
      curvature: a :class:`Curvature`.
      damping: a number, an optax schedule or a :class:`Damping`.
      solver: a :class:`Solver`.
      preconditioner: a :class:`Preconditioner` or None.
      linesearch: a :class:`LineSearch` or None.
      mask: which leaves to train; None for all.
      sampling: which examples the curvature is computed on, see :func:`sampling`.
      axis_name: mapped axis name(s), or None.
      seed: seed of the random numbers of the preconditioner.

    Returns:
      A `optax.GradientTransformationExtraArgs` whose ``update`` needs ``params`` and
      the extra argument ``value_fn``. Further extra arguments are passed to
      ``value_fn`` if it has parameters of these names; others are ignored.

    Raises:
      TypeError: if a setting has the wrong type.
      ValueError: if a number is out of range, or if the solver has ``may_ascend`` and
        the line search does not have ``tolerates_rise``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> f = lambda w: jnp.sum((w - 3.0) ** 2)
      >>> tx = ncg.scale_by_newton_cg(damping=0.0, linesearch=None)
      >>> w = jnp.zeros(2)
      >>> step, _ = tx.update(jax.grad(f)(w), tx.init(w), w, value_fn=f)
      >>> print(w - step)
      [3. 3.]
    """
    settings = complete(
        curvature=curvature,
        damping=damping,
        solver=solver,
        preconditioner=preconditioner,
        linesearch=linesearch,
        mask=mask,
        sampling=sampling,
        axis_name=axis_name,
        seed=seed,
    )

    def init(params):
        return first_state(settings, params)

    def update(
        updates, state, params=None, *, value_fn=None, curvature_batch=None, **extra
    ):
        point = read_point(settings, updates, params, value_fn, extra)
        require_own(state, settings, point.params)
        state = repaired_preconditioner(settings, point.params, state)
        built = build_model(settings, point, state, curvature_batch)
        direction = find_direction(settings, point, built, state)
        trial = try_step(settings, point, built, direction)
        new_state = next_state(settings, point, built, direction, trial, state)
        return scaled_updates(updates, params, point, direction, trial), new_state

    return optax.GradientTransformationExtraArgs(init, update)
