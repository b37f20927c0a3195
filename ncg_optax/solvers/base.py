"""What a solver of the damped Newton system is, and what it reports."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Operator = Callable[[PyTree], PyTree]


class SampledProduct(NamedTuple):
    """The product ``v -> B v`` of the curvature on a share of the examples.

    Attributes:
      product: the function itself, which a call of the object calls.
      share: of the examples, in (0, 1].
    """

    product: Operator
    share: float | jax.Array = 1.0

    def __call__(self, v: PyTree) -> PyTree:
        return self.product(v)


class CGResult(NamedTuple):
    """The outcome of one linear solve ``A x = b`` with ``A = B + damping I``.

    All scalars have shape=(); reals are float32 or wider.

    Attributes:
      solution: the direction ``x``, shaped like the parameters.
      iterations: iterations done, int32.
      products: products with ``B`` spent, int32; one more with a warm start.
      residual: ``|b - A x|``, by recurrence.
      model_decrease: ``b.x - x.Ax / 2``, by how much the damped quadratic model falls
        from 0 to ``x`` (not from the warm start).
      length: of the way from the start to ``x``; with a preconditioner of conjugate
        gradients in the norm of ``M^-1``.
      last_direction: the last search direction ``p``, shaped like the parameters.
      curvature: ``p.Bp / p.p`` along it.
      status: a :class:`Status` code, int32.
      damping: the lambda that the solver chose by itself, or None if it took the one
        it was given.
      evaluations: of the loss that the solver made, int32.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> double = lambda v: 2.0 * v
      >>> result = ncg.solvers.conjugate_gradient(
      ...     double, jnp.array([2.0, 4.0]), maxiter=5, tolerance=1e-6
      ... )
      >>> print(result.solution, result.iterations, result.model_decrease)
      [1. 2.] 1 5.0
    """

    solution: PyTree
    iterations: jax.Array
    products: jax.Array
    residual: jax.Array
    model_decrease: jax.Array
    length: jax.Array
    last_direction: PyTree
    curvature: jax.Array
    status: jax.Array
    damping: jax.Array | None = None
    evaluations: jax.Array | int = 0


class Outcome(NamedTuple):
    """What became of a step; scalars of shape=().

    Attributes:
      predicted_reduction: ``-(g.d + d.Bd / 2)`` of the step ``d`` as taken.
      actual_reduction: ``f(params) - f(params + d)``.
      rounding: how far ``actual_reduction`` may be off through the rounding of ``f``.
      step_size: the factor that the line search put on the solver's direction.
      accepted: whether the step was taken, bool.

    Examples:
      A step that brought 80 per cent of what the model promised:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> outcome = ncg.globalization.Outcome(
      ...     predicted_reduction=jnp.array(1.0),
      ...     actual_reduction=jnp.array(0.8),
      ...     rounding=jnp.array(1e-7),
      ...     step_size=jnp.array(1.0),
      ...     accepted=jnp.array(True),
      ... )
      >>> print(outcome.ratio_at_least(0.75), outcome.ratio_at_least(0.9))
      True False
    """

    predicted_reduction: jax.Array
    actual_reduction: jax.Array
    rounding: jax.Array
    step_size: jax.Array
    accepted: jax.Array

    def ratio_at_least(self, threshold: float | jax.Array) -> jax.Array:
        """Whether actual / predicted >= threshold.

        Without division, so that it keeps its sense at zero, and in favour of the step
        at rounding level. False for a rejected step.
        """
        reached = self.actual_reduction + self.rounding >= (
            threshold * self.predicted_reduction
        )
        return jnp.logical_and(self.accepted, reached)


class Solver(NamedTuple):
    """A solver of ``(B + damping I) d = -g``.

    Attributes:
      init: ``init(params) -> state``.
      solve: ``solve(matvec, rhs, damping, precondition, state) -> (result, state)``,
        with ``matvec`` the product with ``B``, ``rhs = -g``, ``precondition`` a
        function ``r -> M r`` with ``M ~ (B + damping I)^-1`` or None, and ``result`` a
        :class:`CGResult`.
      update: ``update(state, outcome) -> state`` after the step was tried.
      needs_outcome: whether ``update`` needs the loss at the end of the step, which
        costs an evaluation if nobody else asks for it.
      descent_threshold: the direction is replaced by ``-g`` unless ``g.d < -t``;
        `-math.inf` keeps every direction, and rules out a line search.
      needs_objective: whether ``solve`` also takes the keywords ``objective`` (with the
        fields of a :class:`CompositeLoss` and its data) and ``params``, because
        products are not enough for it.
      needs_point: whether ``solve`` also takes the keywords ``params`` (those that are
        trained, float32 or wider) and ``loss``, the point that it starts from.

    Examples:
      Conjugate gradients of three iterations, without state or tolerance:

      >>> import ncg_optax as ncg
      >>> def solve(matvec, rhs, damping, precondition, state):
      ...     settings = dict(maxiter=3, tolerance=0.0, precondition=precondition)
      ...     return ncg.solvers.conjugate_gradient(matvec, rhs, damping, **settings), state
      >>> three = ncg.solvers.Solver(
      ...     init=lambda params: (), solve=solve, update=lambda state, outcome: state
      ... )
      >>> tx = ncg.newton_cg(solver=three)
    """

    init: Callable[[PyTree], Any]
    solve: Callable[..., tuple[CGResult, Any]]
    update: Callable[[Any, Outcome], Any]
    needs_outcome: bool = False
    descent_threshold: float = 0.0
    needs_objective: bool = False
    needs_point: bool = False

    @property
    def may_ascend(self) -> bool:
        """Whether a direction may lead uphill on the loss of the step."""
        threshold = self.descent_threshold
        return isinstance(threshold, float) and threshold == -math.inf
