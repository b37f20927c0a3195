"""The protocol of solvers of the damped Newton system, their input and output."""

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

    A solver reads the fields that it needs.

    Attributes:
      gradient: ``g``, the mean over all devices, shaped like the trained parameters,
        float32 or wider.
      damping: lambda, shape=().
      product: ``v -> B v`` for trees ``v`` with the shapes and dtypes of ``gradient``.
      precondition: ``r -> M r`` with ``M`` near ``(B + lambda I)^-1``; None without a
        preconditioner.
      params: the trained parameters, in their own dtypes.
      loss: loss of the whole batch at ``params``, shape=(), float32 or wider; NaN if it
        is not known.
      objective: the loss as a function of the trained parameters, on the examples of
        the curvature's sample; see :class:`CompositeLoss` for its fields.
      unit: gradient, damping, product and loss are divided by this power of two, so
        that their squares neither overflow nor underflow; 1 unless the loss is very
        large or very small. An absolute tolerance has to be divided by it.

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
    unit: jax.Array | float = 1.0

    @property
    def rhs(self) -> PyTree:
        """The right-hand side ``b = -g`` of the Newton system."""
        return pytree.negative(self.gradient)

    def damped_product(self, v: PyTree) -> PyTree:
        """``(B + lambda I) v``."""
        return pytree.add_scaled(self.product(v), self.damping, v)


class SolverResult(NamedTuple):
    """The result of one linear solve ``A x = b`` with ``A = B + damping I``.

    All scalars have shape=(); reals are float32 or wider.

    Attributes:
      solution: the direction ``x``, shaped like the parameters.
      iterations: number of iterations, int32.
      products: number of products with ``B``, int32. In conjugate gradients one for
        each iteration, and one more for a warm start.
      residual: ``|b - A x|``; iterative solvers compute it by recurrence.
      model_decrease: ``b.x - x.Ax / 2``, the decrease of the damped quadratic model
        from 0 (not from the warm start) to ``x``.
      length: ``|x - x0|`` with ``x0`` the start. With a preconditioner conjugate
        gradients and :func:`averaged_gradient` use the norm of ``M^-1``.
      last_direction: the last search direction ``p``, shaped like the parameters.
      curvature: ``p.Bp / p.p``.
      status: a :class:`Status` code, int32.
      damping: the lambda that the solver chose; None if it used the given one.
      evaluations: number of evaluations of the loss, int32.
      gradients: cost of the linear algebra in gradients of the objective; 0 if it is
        not counted.

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
    gradients: jax.Array | float = 0.0


@runtime_checkable
class Solver(Part, Protocol):
    """A solver of ``(B + lambda I) d = -g``.

    To add a solver, subclass this protocol. Only ``solve`` has no default.

    Attributes:
      needs_outcome: whether ``update`` needs the loss at the end of the step. That loss
        is evaluated if the damping rule, the solver or the line search needs it.
      may_ascend: whether a direction ``d`` is also used if ``g.d`` is not negative, so
        that the loss may rise along it. The line search must have ``tolerates_rise``.
      descent_threshold: a number ``t``, at least 0. Without ``may_ascend`` the
        direction is replaced by ``-g`` unless ``g.d < -t``.

    Examples:
      Three iterations of conjugate gradients, without state or tolerance:

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
        """The state before the first step.

        The leaves of ``params`` may be `jax.ShapeDtypeStruct`.
        """
        del params
        return ()

    def solve(self, model: Model, state: Any) -> tuple[SolverResult, Any]:
        """The direction, and the state that ``update`` gets after the step is tried."""
        ...

    def update(self, state: Any, outcome: Outcome) -> Any:
        """The state for the next step, after this one was tried."""
        del outcome
        return state


def checked_solve(solver: Solver, model: Model, state: Any) -> tuple[SolverResult, Any]:
    """``solver.solve(model, state)``; the result is checked.

    The solver may be a class of the user.

    Raises:
      TypeError: if ``solve`` does not return a :class:`SolverResult` and a state.
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
    vectors = ("solution", "last_direction")
    scalars = {k: v for k, v in result._asdict().items() if k not in vectors}
    validate.returned_scalars(solver, "solve", scalars)
    return result, state


class KrylovSolver(Solver):
    """A solver that uses only products with ``B`` and ``M``.

    Such a solver reads the fields gradient, damping, product and precondition of the
    model. So another solver may change these fields and call it, as
    :func:`quasi_newton` does with the preconditioner. This is not a protocol: a solver
    of this kind has to be a subclass.

    Examples:
      >>> import ncg_optax as ncg
      >>> isinstance(ncg.minres(), ncg.solvers.KrylovSolver)
      True
      >>> isinstance(ncg.residual_space(), ncg.solvers.KrylovSolver)
      False
    """


class DirectSolver(Solver):
    """A solver that uses the ``objective`` of the model instead of the product.

    The examples of an objective are fixed, so with such a solver the curvature never
    changes from its sample to the whole batch (``grow_below`` of :func:`sampling`).

    Examples:
      >>> import ncg_optax as ncg
      >>> isinstance(ncg.residual_space(), ncg.solvers.DirectSolver)
      True
    """
