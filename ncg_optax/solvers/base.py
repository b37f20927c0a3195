"""What a solver of the damped Newton system is, and what goes in and out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.parts import Part
from ncg_optax.globalization.base import Outcome
from ncg_optax.losses.objective import Objective

PyTree = Any
Operator = Callable[[PyTree], PyTree]


class Model(NamedTuple):
    r"""The damped quadratic model of the loss around the current parameters.

    .. math::
      q(d) = g^T d + \tfrac12 d^T (B + \lambda I)\, d

    A solver takes from it what it needs.

    Attributes:
      gradient: ``g``, the mean over all devices, shaped like the trained parameters,
        float32 or wider.
      damping: lambda, shape=().
      product: ``v -> B v`` for trees ``v`` like the gradient.
      precondition: ``r -> M r`` with ``M`` near ``(B + lambda I)^-1``; None for none.
      params: the trained parameters, in their own dtypes.
      loss: of the whole batch there, shape=(), float32 or wider; NaN if not known.
      objective: the loss as a function of the trained parameters, on the examples that
        ``product`` is computed on; see :class:`CompositeLoss` for its fields.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> model = ncg.solvers.Model(
      ...     gradient=jnp.array([-2.0, -4.0]), damping=0.0, product=lambda v: 2.0 * v
      ... )
      >>> solver = ncg.cg()
      >>> result, state = solver.solve(model, solver.init(model.gradient))
      >>> print(result.solution)
      [1. 2.]
    """

    gradient: PyTree
    damping: jax.Array | float
    product: Operator
    precondition: Operator | None = None
    params: PyTree = None
    loss: jax.Array | float = math.nan
    objective: Objective | None = None

    @property
    def rhs(self) -> PyTree:
        """The right-hand side ``b = -g`` of the Newton system."""
        return pytree.scale(self.gradient, -1.0)

    def damped_product(self, v: PyTree) -> PyTree:
        """``(B + lambda I) v``."""
        return pytree.add_scaled(self.product(v), self.damping, v)


class SolverResult(NamedTuple):
    """The outcome of one linear solve ``A x = b`` with ``A = B + damping I``.

    All scalars have shape=(); reals are float32 or wider.

    Attributes:
      solution: the direction ``x``, shaped like the parameters.
      iterations: iterations done, int32.
      products: products with ``B`` spent, int32; one more with a warm start.
      residual: ``|b - A x|``, by recurrence.
      model_decrease: ``b.x - x.Ax / 2``, by how much the damped quadratic model falls
        from 0 to ``x`` (not from the warm start).
      length: of ``x`` minus the start; that of conjugate gradients with a
        preconditioner is in the norm of ``M^-1``.
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


@runtime_checkable
class Solver(Part, Protocol):
    """A solver of ``(B + lambda I) d = -g``.

    Subclass this protocol for a solver of one's own. Only ``solve`` has no default.

    Attributes:
      needs_outcome: whether ``update`` needs the loss at the end of the step. If nobody
        needs it, it is not evaluated.
      may_ascend: whether its directions may lead uphill on the loss of the step and are
        taken all the same. Then it takes a line search that tolerates a rise.
      descent_threshold: without ``may_ascend`` the direction is replaced by ``-g``
        unless ``g.d < -t``.

    Examples:
      Conjugate gradients of three iterations, without state or tolerance:

      >>> import ncg_optax as ncg
      >>> from ncg_optax.solvers import conjugate_gradient
      >>> class Three(ncg.solvers.Solver):
      ...     def solve(self, model, state):
      ...         result = conjugate_gradient(
      ...             model.product, model.rhs, model.damping, maxiter=3, tolerance=0.0
      ...         )
      ...         return result, state
      >>> tx = ncg.newton_cg(solver=Three())
    """

    needs_outcome: bool = False
    may_ascend: bool = False
    descent_threshold: float = 0.0

    def init(self, params: PyTree) -> Any:
        """The first state; ``params`` may be `jax.ShapeDtypeStruct` leaves."""
        del params
        return ()

    def solve(self, model: Model, state: Any) -> tuple[SolverResult, Any]:
        """The direction, and the state with what ``update`` has to know of it."""
        ...

    def update(self, state: Any, outcome: Outcome) -> Any:
        """The next state, after the step was tried."""
        del outcome
        return state


def checked_solve(solver: Solver, model: Model, state: Any) -> tuple[SolverResult, Any]:
    """``solver.solve(model, state)``, of a solver that the user may have written.

    Raises:
      TypeError: if it returns something else than a result and a state.
      ValueError: if the solution is not shaped like the gradient.
    """
    result, state = validate.returned(
        solver,
        "solve",
        solver.solve(model, state),
        "(SolverResult, state)",
        *(SolverResult, object),
    )
    validate.returned_tree(solver, "solve", result.solution, model.gradient)
    return result, state


class KrylovSolver(Solver):
    """A solver that uses products with ``B`` and ``M`` alone.

    It takes from the model the gradient, the damping, the product and the
    preconditioner, so another solver may change one of these and call it:
    :func:`quasi_newton` changes the preconditioner, for instance. Unlike
    :class:`Solver` this is no protocol: a class says that it is one by subclassing it.

    Examples:
      >>> import ncg_optax as ncg
      >>> isinstance(ncg.minres(), ncg.solvers.KrylovSolver)
      True
      >>> isinstance(ncg.residual_space(), ncg.solvers.KrylovSolver)
      False
    """


class DirectSolver(Solver):
    """A solver that works on the ``objective`` of the model instead of the product.

    The examples of an objective are fixed, so the sample of the curvature does not grow
    (see :func:`sampling`).

    Examples:
      >>> import ncg_optax as ncg
      >>> isinstance(ncg.residual_space(), ncg.solvers.DirectSolver)
      True
    """
