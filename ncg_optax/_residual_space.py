"""Exact damped Gauss-Newton steps in the smaller of parameter and residual space."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax import _collectives, _jacobian, _tree, _validate
from ncg_optax._jacobian import Blocks, Route
from ncg_optax._linesearch import rounding_level
from ncg_optax._loss import Objective
from ncg_optax._solver import CGResult, Solver
from ncg_optax._status import Status

PyTree = Any

_UNKNOWN, _PER_EXAMPLE, _WHOLE_BATCH = 0, 1, 2


class ResidualSpaceState(NamedTuple):
    """State of :func:`residual_space`.

    Attributes:
      damping: the last lambda of the ladder, 0 before the first; shape=().
      direction: the last direction, for the momentum; None without.
      route: how the rows of the Jacobian are computed, found out at the first step:
        0 not known yet, 1 example by example, 2 over the whole batch; int32, shape=().
    """

    damping: jax.Array
    direction: PyTree | None
    route: jax.Array


class _System(NamedTuple):
    """The damped normal equations in one of the two spaces.

    With ``A`` the weighted Jacobian, ``q`` the residuals and ``r`` what of the right
    hand side ``A^T q + r`` is no combination of rows.

    Attributes:
      gram: ``A A^T`` or ``A^T A``, shape=(m, m).
      target: ``target(damping)``, the right-hand side in this space, shape=(m,).
      lift: ``lift(y, damping)``, from there to a direction.
      product: ``v -> A^T A v``.
      bend: ``v -> |A v|^2``.
    """

    gram: jax.Array
    target: Callable[[jax.Array], jax.Array]
    lift: Callable[[jax.Array, jax.Array], PyTree]
    product: Callable[[PyTree], PyTree]
    bend: Callable[[PyTree], jax.Array]


class _Steps(NamedTuple):
    """A direction, or several along a first axis."""

    direction: PyTree
    damping: jax.Array
    slope: jax.Array  # b.d
    bend: jax.Array  # |A d|^2

    @property
    def reduction(self) -> jax.Array:
        """Of the loss, as the undamped model predicts it."""
        return self.slope - 0.5 * self.bend


def residual_space(
    ladder: int | None = 5,
    spread: float = 10.0,
    ratio: float = 0.1,
    momentum: float = 0.0,
    jacobian: str = "auto",
    chunk: int = 256,
    max_size: int = 10_000,
) -> Solver:
    r"""Direct solution of the damped Gauss-Newton system, by Cholesky factorisation.

    With :math:`J` the Jacobian of the model's outputs, :math:`H_\ell = S^T S` the
    Hessian of the loss in them and :math:`A = S J`, it solves

    .. math::
      (A^T A + \lambda I)\, d = -g = -A^T q
      \qquad\Longleftrightarrow\qquad
      d = -A^T (A A^T + \lambda I)^{-1} q

    on the left if there are fewer parameters than residuals (rows of ``A``: examples
    times outputs), else on the right (Schraudolph 2002; Chen and Heyl 2024). Exact
    steps do not mind the conditioning that conjugate gradients stall on: this is the
    solver for regression and physics-informed networks with up to some thousand
    residuals or parameters. A part of the gradient outside of the range of
    :math:`S^T`, where the loss is not curved, is treated by Woodbury's identity.

    Instead of adapting one damping it prices a geometric ladder of them at every step,
    around the last: the *largest step whose reduction ratio passes* is taken, that is
    the smallest :math:`\lambda` with

    .. math::
      f(\theta) - f(\theta + d_\lambda) \ge
      -\text{ratio}\, (g^T d_\lambda + \tfrac12 d_\lambda^T B\, d_\lambda),

    or else the best of them that descends (Webb, Jerad and Cartis 2026, who choose a
    radius so). The best loss would be too greedy a choice. ``damping`` of the optimizer
    then only says where the first ladder is centred, and its line search starts from
    the step that passed.

    With ``momentum`` :math:`\mu > 0` the step is SPRING's (Goldshlager, Abrahamsen and
    Lin 2024),

    .. math::
      d_k = \mu\, d_{k-1} - A^T (A A^T + \lambda I)^{-1} (q + \mu A\, d_{k-1}).

    Needs a :class:`CompositeLoss` as ``value_fn`` and ``curvature=gauss_newton()``. It
    takes for granted, and cannot check, that in the *loss* no example's outputs are
    coupled with those of another one (sums and means over examples are fine). Outputs
    with a first axis of the same length belong to the same examples; a
    physics-informed network returns a dictionary with a leaf for each kind of points.
    Preconditioners are not used.

    Cost: the rows of ``A`` are backward passes. If the data is bound to the loss or
    given to ``update``, with the examples first, a row is a pass through its example:
    as much as one gradient for each output of an example, all in all. If the model
    mixes examples (batch statistics) or hides its data in a closure a row is a pass
    through the *whole batch*, which is slow. Then with ``m`` the smaller and ``n`` the
    larger number of residuals and parameters ``m^2 n`` operations for the matrix and
    ``m^3 / 3`` for each factorisation. Memory: ``m^2`` and, in residual space, the
    ``m n`` of ``A``. The products in :func:`get_info` are the outputs per example, or
    the rows if each goes through the whole batch; evaluations are those of the ladder.

    On several devices each computes the rows of its examples; they are gathered, or in
    parameter space ``A^T A`` is summed.

    Args:
      ladder: number of dampings to price at a step; None takes the optimizer's
        ``damping`` as it is.
      spread: the largest damping of a ladder over its middle one.
      ratio: actual over predicted reduction that a step must reach.
      momentum: :math:`\mu` in [0, 1). SPRING's is about 0.9, with fixed damping.
      jacobian: ``"per_example"`` or ``"whole_batch"`` as above; ``"auto"`` compares the
        two at the first step, at the cost of two gradients, and compiles both. (Under
        `jax.vmap` it may run both: choose there.)
      chunk: rows that are computed at once: less needs less memory.
      max_size: largest ``m`` before an error rather than the memory stops it.

    Returns:
      A :class:`Solver`. In ``update`` it raises TypeError for a ``value_fn`` that is
      no :class:`CompositeLoss` or outputs that are not real; ValueError for outputs
      without an axis of examples, for more than ``max_size`` of residuals and of
      parameters, and if ``jacobian="per_example"`` does not fit the data.

    Raises:
      TypeError: if a setting is not a number, or not an integer where it has to be.
      ValueError: if a setting is out of range or NaN, or an option unknown.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w, x: jnp.tanh(x @ w), lambda z, y: jnp.mean((z - y) ** 2)
      ... ).bind(x=jnp.array([[1.0, 2.0], [3.0, -1.0]]), y=jnp.array([0.5, -0.5]))
      >>> tx = ncg.newton_cg(
      ...     curvature=ncg.gauss_newton(), solver=ncg.residual_space()
      ... )
      >>> @jax.jit
      ... def step(w, state):
      ...     grads = jax.grad(loss)(w)
      ...     updates, state = tx.update(grads, state, w, value_fn=loss)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> for _ in range(6):
      ...     w, state = step(w, state)
      >>> print(bool(loss(w) < 1e-10))
      True
    """
    who = "residual_space: "
    if ladder is not None:
        _validate.integer(who + "ladder", ladder, low=2)
    _validate.number(who + "spread", spread, low=1.0, low_open=True)
    _validate.number(who + "ratio", ratio, low=0.0, high=1.0)
    _validate.number(who + "momentum", momentum, low=0.0, high=0.9999)
    options = ("auto", "per_example", "whole_batch")
    _validate.choice(who + "jacobian", jacobian, options)
    _validate.integer(who + "chunk", chunk, low=1)
    _validate.integer(who + "max_size", max_size, low=1)

    def init(params):
        return ResidualSpaceState(
            damping=jnp.zeros((), _tree.scalar_dtype(params)),
            direction=_tree.widened_zeros_like(params) if momentum else None,
            route=jnp.asarray(_UNKNOWN, jnp.int32),
        )

    def solve(matvec, rhs, damping, precondition, state, *, objective, params):
        if objective.model is None:
            raise TypeError(
                "residual_space needs to see where the network ends and the loss "
                "begins: pass value_fn=ncg_optax.CompositeLoss(model_fn, loss_fn) (or "
                "its .bind(...)), not a plain function."
            )
        with jax.default_matmul_precision("highest"):
            return _solve(rhs, damping, state, objective, params)

    def _solve(rhs, damping, state, objective, params):
        dtype = _tree.scalar_dtype(rhs)
        b = _jacobian.as_real(rhs)
        previous = None
        if momentum:
            previous = _tree.scale(_jacobian.as_real(state.direction), momentum)
        jac = _examine(objective, params, state.route, jacobian, chunk)
        system = _assemble(jac, b, previous, max_size, chunk)

        if ladder is None:
            lam = jnp.asarray(damping, dtype)
            y = _solve_shifted(system.gram, lam, system.target(lam))
            step, passed = _measure(system, b, y, lam), True
        else:
            lams = _rungs(system.gram, state.damping, damping, ladder, spread)
            ys = jax.lax.map(
                lambda lam: _cholesky_solve(system.gram, lam, system.target(lam)), lams
            )
            steps = jax.vmap(lambda y, lam: _measure(system, b, y, lam))(ys, lams)
            loss_at = _loss_along(objective, params, rhs)
            step, passed = _choose(steps, loss_at, ratio)

        finite = _tree.all_finite(step.direction) & jnp.isfinite(step.bend)
        d = _tree.where(finite, step.direction, _tree.zeros_like(step.direction))
        direction = _tree.cast_like(_jacobian.from_real(d, rhs), rhs)
        nothing = _tree.vdot(rhs, rhs) == 0
        status = jnp.where(finite, Status.RESIDUAL_CONVERGED, Status.SOLVER_NON_FINITE)
        status = jnp.where(nothing, Status.ZERO_RIGHT_HAND_SIDE, status)
        residual = _tree.add_scaled(b, -1.0, system.product(d))
        residual = _tree.add_scaled(residual, -step.damping, d)
        length2 = _tree.vdot(d, d)
        result = CGResult(
            solution=direction,
            iterations=jnp.ones((), jnp.int32),
            products=jac.products,
            residual=_tree.norm(residual),
            model_decrease=jnp.where(
                finite, step.reduction - 0.5 * step.damping * length2, 0
            ).astype(dtype),
            length=jnp.sqrt(length2),
            last_direction=direction,
            curvature=step.bend / jnp.where(length2 > 0, length2, 1),
            status=status.astype(jnp.int32),
            damping=None if ladder is None else step.damping,
            evaluations=0 if ladder is None else ladder,
        )
        new_state = ResidualSpaceState(
            damping=state.damping if ladder is None else step.damping,
            # A momentum that kept the whole ladder from passing is dropped.
            direction=_tree.scale(direction, jnp.where(passed, 1, 0))
            if momentum
            else None,
            route=jac.route,
        )
        return result, new_state

    def update(state, outcome):
        if not momentum:
            return state
        zeros = _tree.zeros_like(state.direction)
        kept = _tree.where(outcome.accepted, state.direction, zeros)
        return state._replace(direction=kept)

    return Solver(
        init,
        solve,
        update,
        needs_outcome=ladder is not None,
        needs_objective=True,
    )


class _Jacobian(NamedTuple):
    """What is known of the weighted Jacobian before its rows are computed.

    Attributes:
      objective: the loss.
      blocks: of the loss Hessian, one for each group of outputs.
      fast: ``fast()``, the routes to the rows through the examples, or None.
      slow: ``slow()``, those through the whole batch, or None.
      route: which of the two to take if there are both, int32, shape=().
      rest: the gradient's part outside of the range of ``A^T``.
      products: what the rows cost, int32, shape=().
    """

    objective: Objective
    blocks: list[Blocks]
    fast: Callable[[], list[Route]] | None
    slow: Callable[[], list[Route]] | None
    route: jax.Array
    rest: PyTree
    products: jax.Array

    @property
    def residuals(self) -> int:
        """Number of rows, over all devices."""
        devices = _collectives.size(self.objective.axes)
        return devices * sum(block.target.size for block in self.blocks)

    def compute(self, of_routes: Callable[[list[Route]], PyTree]) -> PyTree:
        """``of_routes`` of the routes that are to be taken."""
        if self.slow is None or self.fast is None:
            return of_routes((self.fast or self.slow)())
        return jax.lax.cond(
            self.route == _WHOLE_BATCH,
            lambda: of_routes(self.slow()),
            lambda: of_routes(self.fast()),
        )


def _examine(
    objective: Objective, params: PyTree, route: jax.Array, jacobian: str, chunk: int
) -> _Jacobian:
    """The loss at the outputs, and how to get at the Jacobian's rows."""
    outputs, pullback = jax.vjp(objective.model, params)
    groups = _jacobian.group_outputs(outputs)
    lengths = [group.examples for group in groups]
    blocks = [_jacobian.loss_blocks(objective, outputs, group) for group in groups]
    reduce = _reducer(objective, outputs)

    def pull(cotangents):
        """``J^T u`` of this device, a real vector."""
        tree = jax.tree.map(jnp.zeros_like, outputs)
        for group, flat in zip(groups, cotangents, strict=True):
            tree = group.replace(tree, flat)
        return _jacobian.real_row(pullback(tree)[0])

    # Squared losses have no such part, and then the pass is not made.
    left_out = [block.rest for block in blocks]
    somewhere = sum(jnp.sum(jnp.abs(rest)) for rest in left_out)
    somewhere = _collectives.mean(somewhere, objective.axes)
    zeros = _collectives.to_varying(
        _tree.zeros_like(jax.eval_shape(pull, left_out)), objective.axes
    )
    rest = reduce(jax.lax.cond(somewhere != 0, pull, lambda _: zeros, left_out))

    def whole(group):
        return _jacobian.whole_batch_route(objective, params, group)

    by_example = [None] * len(groups)
    if jacobian != "whole_batch":
        by_example = [
            _jacobian.per_example_route(objective, params, group, lengths)
            for group in groups
        ]
    if jacobian == "per_example" and None in by_example:
        raise ValueError(
            'residual_space: jacobian="per_example" needs the data bound to the loss '
            "or given to update by name, and a model whose outputs for one example, "
            f"a batch of one, have length one; the outputs of lengths {lengths} do "
            "not follow that. Use jacobian='auto'."
        )
    fast = slow = None
    if any(by_example):
        fast = lambda: [  # noqa: E731
            route or whole(group)
            for route, group in zip(by_example, groups, strict=True)
        ]
    if jacobian == "auto" or fast is None:
        slow = lambda: [whole(group) for group in groups]  # noqa: E731

    rows = [group.examples * group.width for group in groups]
    passes = [
        count / sum(lengths) if route else count
        for count, route in zip(rows, by_example, strict=True)
    ]
    if fast is None:
        route, products = jnp.full_like(route, _WHOLE_BATCH), sum(rows)
    elif slow is None:
        route, products = jnp.full_like(route, _PER_EXAMPLE), math.ceil(sum(passes))
    else:
        first = route == _UNKNOWN
        route = jax.lax.cond(
            first,
            lambda: _compare(objective, params, fast(), blocks, pull, chunk),
            lambda: route,
        )
        products = jnp.where(route == _WHOLE_BATCH, sum(rows), math.ceil(sum(passes)))
        products += 2 * first
    return _Jacobian(
        objective=objective,
        blocks=blocks,
        fast=fast,
        slow=slow,
        route=route,
        rest=rest,
        products=jnp.asarray(products, jnp.int32),
    )


def _reducer(objective: Objective, outputs: PyTree) -> Callable[[PyTree], PyTree]:
    if not objective.axes:
        return lambda tree: tree
    return _collectives.derivative_reducer(objective.loss(outputs), objective.axes)


def _compare(
    objective: Objective,
    params: PyTree,
    routes: list[Route],
    blocks: list[Blocks],
    pull: Callable[[list[jax.Array]], PyTree],
    chunk: int,
) -> jax.Array:
    """Which route is right, by a random combination of all rows.

    A model that normalises over the batch, say, takes a single example as well, but
    makes something else of it.
    """
    keys = jax.random.split(jax.random.key(0), len(blocks))
    cotangents = [
        jnp.einsum(
            "nkc,nk->nc", block.root, jax.random.normal(key, block.target.shape)
        ).astype(block.root.dtype)
        for key, block in zip(keys, blocks, strict=True)
    ]
    together = pull(cotangents)

    def fold(carry, rows, _):
        total, square = carry
        total = jax.tree.map(lambda x, y: x + jnp.sum(y, axis=0), total, rows)
        return total, square + _tree.vdot(rows, rows)

    axes = objective.axes
    carry = _tree.zeros_like(together), jnp.zeros((), _tree.scalar_dtype(together))
    carry = _collectives.to_varying(carry, axes)
    for route, u, block in zip(routes, cotangents, blocks, strict=True):
        ones = block.target[:, :1]  # not looked at
        carry = _jacobian.fold_rows(fold, carry, route, u[:, None], ones, chunk)
    total, square = carry
    eps = max(jnp.finfo(x.dtype).eps for x in jax.tree.leaves(params))
    error = _tree.norm(_tree.add_scaled(total, -1.0, together))
    wrong = jnp.logical_not(error <= eps**0.5 * jnp.sqrt(square))  # or not finite
    wrong = _collectives.mean(wrong.astype(square.dtype), axes) > 0
    known = jnp.isfinite(_collectives.mean(_tree.norm(together), axes))
    route = jnp.where(wrong, _WHOLE_BATCH, _PER_EXAMPLE)
    return jnp.where(known, route, _UNKNOWN).astype(jnp.int32)


def _assemble(
    jac: _Jacobian, b: PyTree, previous: PyTree | None, max_size: int, chunk: int
) -> _System:
    """The system in the smaller of the two spaces."""
    parameters = sum(x.size for x in jax.tree.leaves(b))
    residuals = jac.residuals
    smaller = min(parameters, residuals)
    if smaller > max_size:
        gigabytes = smaller**2 * _tree.scalar_dtype(b).itemsize / 2**30
        raise ValueError(
            f"residual_space: {residuals} residuals and {parameters} parameters are "
            f"too many, the smaller space has a matrix of {smaller} x {smaller} "
            f"numbers, {gigabytes:.1f} GB. Use cg(), a smaller batch, or raise "
            f"max_size={max_size} if there is the memory."
        )
    if residuals <= parameters:
        return _in_residual_space(jac, b, previous, chunk)
    return _in_parameter_space(jac, b, previous, chunk)


def _in_residual_space(
    jac: _Jacobian, b: PyTree, previous: PyTree | None, chunk: int
) -> _System:
    axes = jac.objective.axes

    def compute(routes):
        return _jacobian.stack(
            [
                _jacobian.rows(route, block.root, chunk)
                for route, block in zip(routes, jac.blocks, strict=True)
            ]
        )

    a = _collectives.gather(jac.compute(compute), axes)
    q = jnp.concatenate([-block.target.reshape(-1) for block in jac.blocks])
    q = _collectives.gather(q, axes)
    gram = _jacobian.gram(a)
    noise = jnp.sqrt(jnp.trace(gram)) * jnp.linalg.norm(q)
    factor, rest = _split(b, _jacobian.transposed_times(a, q), jac.rest, noise)
    q = factor * q
    if previous is not None:
        q = q - _jacobian.times(a, previous)
    a_rest = _jacobian.times(a, rest)

    def lift(y, damping):
        d = _tree.add_scaled(_jacobian.transposed_times(a, y), _inverse(damping), rest)
        return d if previous is None else _tree.add_scaled(d, 1.0, previous)

    return _System(
        gram=gram,
        target=lambda damping: q - _inverse(damping) * a_rest,
        lift=lift,
        product=lambda v: _jacobian.transposed_times(a, _jacobian.times(a, v)),
        bend=lambda v: jnp.sum(jnp.square(_jacobian.times(a, v))),
    )


def _in_parameter_space(
    jac: _Jacobian, b: PyTree, previous: PyTree | None, chunk: int
) -> _System:
    axes = jac.objective.axes
    vector, unravel = ravel_pytree(b)

    def fold(carry, rows, targets):
        gram, inside, square = carry
        flat = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(rows)]
        flat = jnp.concatenate(flat, axis=1).astype(vector.dtype)
        return (
            gram + flat.T @ flat,
            inside - flat.T @ targets.astype(vector.dtype),
            square + jnp.sum(jnp.square(targets)).astype(vector.dtype),
        )

    def compute(routes):
        size = vector.size
        carry = [jnp.zeros(shape, vector.dtype) for shape in ((size, size), size, ())]
        carry = _collectives.to_varying(tuple(carry), axes)
        for route, block in zip(routes, jac.blocks, strict=True):
            carry = _jacobian.fold_rows(
                fold, carry, route, block.root, block.target, chunk
            )
        return carry

    gram, inside, square = _collectives.total(jac.compute(compute), axes)
    noise = jnp.sqrt(jnp.trace(gram) * square)
    factor, rest = _split(b, unravel(inside), jac.rest, noise)
    target = factor * inside + ravel_pytree(rest)[0]

    def damped_target(damping):
        if previous is None:
            return target
        return target + damping * ravel_pytree(previous)[0]

    return _System(
        gram=gram,
        target=damped_target,
        lift=lambda y, damping: unravel(y),
        product=lambda v: unravel(gram @ ravel_pytree(v)[0]),
        bend=lambda v: jnp.vdot(ravel_pytree(v)[0], gram @ ravel_pytree(v)[0]),
    )


def _inverse(damping: jax.Array) -> jax.Array:
    """``1 / damping``; 0 for no damping, which gives the step of least norm."""
    return jnp.where(damping > 0, 1 / jnp.where(damping > 0, damping, 1), 0)


def _split(
    b: PyTree, inside: PyTree, outside: PyTree, noise: jax.Array
) -> tuple[jax.Array, PyTree]:
    """``(factor, rest)`` with ``b = factor * inside + rest``.

    ``inside - outside`` is the negative gradient of the loss that the rows belong to.
    What ``b`` differs from it by rounding (that of the user's gradient, which may come
    from bfloat16 or TF32 products) is dropped: along directions that the rows do not
    span it would be divided by the damping. A ``b`` that was clipped as a whole is
    still combined of rows.

    Args:
      b: the right-hand side.
      inside: ``-A^T q``.
      outside: the gradient's part that is no combination of rows.
      noise: ``|A| |q|``, in units of whose rounding ``inside`` is known.
    """
    eps = jnp.finfo(_tree.scalar_dtype(b)).eps
    own = _tree.add_scaled(inside, -1.0, outside)

    def remainder(factor):
        extra = _tree.add_scaled(b, -factor, own)
        level = eps**0.25 * _tree.norm(own) + 100 * eps * noise
        return extra, _tree.norm(extra) > jnp.abs(factor) * level

    differs = remainder(1.0)[1]
    length2 = _tree.vdot(own, own)
    fitted = _tree.vdot(b, own) / jnp.where(length2 > 0, length2, 1)
    factor = jnp.where(differs & (length2 > 0), fitted, 1)
    extra, differs = remainder(factor)
    extra = _tree.where(differs, extra, _tree.zeros_like(extra))
    return factor, _tree.add_scaled(extra, -factor, outside)


def _cholesky_solve(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """``(gram + damping I)^-1 c``, not finite where rounding made that indefinite."""
    damped = gram + damping.astype(gram.dtype) * jnp.eye(len(gram), dtype=gram.dtype)
    factor = jnp.linalg.cholesky(damped, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), c.astype(gram.dtype))


def _spectral_solve(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """The same without the eigenvectors that are known by rounding alone."""
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0)
    level = len(gram) * jnp.finfo(gram.dtype).eps * values[-1]
    damped = values + damping.astype(gram.dtype)
    inverse = jnp.where(damped > level, 1 / jnp.where(damped > level, damped, 1), 0)
    return vectors @ (inverse * (vectors.T @ c.astype(gram.dtype)))


def _solve_shifted(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    y = _cholesky_solve(gram, damping, c)
    return jax.lax.cond(
        jnp.all(jnp.isfinite(y)),
        lambda: y,
        lambda: _spectral_solve(gram, damping, c),
    )


def _rungs(
    gram: jax.Array, last: jax.Array, given: jax.Array, count: int, spread: float
) -> jax.Array:
    """Dampings around the last one, smallest first, shape=(count,)."""
    top = jnp.trace(gram)
    eps = jnp.finfo(gram.dtype).eps
    first = jnp.where(given > 0, given, 1e-4 * top / len(gram))
    centre = jnp.where(last > 0, last, first)
    centre = jnp.clip(centre, 1e-3 * eps * top, top / eps)
    return (centre * spread ** jnp.linspace(-1.0, 1.0, count)).astype(last.dtype)


def _measure(system: _System, b: PyTree, y: jax.Array, damping: jax.Array) -> _Steps:
    d = system.lift(y, damping)
    return _Steps(d, damping, slope=_tree.vdot(b, d), bend=system.bend(d))


def _loss_along(
    objective: Objective, params: PyTree, like: PyTree
) -> Callable[[PyTree], jax.Array]:
    """The loss over all devices after a step, given as a real vector."""
    dtype = _tree.scalar_dtype(like)

    def loss_at(d):
        d = _jacobian.from_real(d, like)
        moved = _tree.cast_like(_tree.add_scaled(_tree.widen(params), 1.0, d), params)
        local = objective.value(_collectives.to_varying(moved, objective.axes))
        return _collectives.mean(local, objective.axes).astype(dtype)

    return loss_at


def _choose(
    steps: _Steps, loss_at: Callable[[PyTree], jax.Array], ratio: float
) -> tuple[_Steps, jax.Array]:
    """The largest step that keeps its promise, or else the best, or the shortest.

    Returns:
      The step, and whether it kept its promise.
    """
    start = loss_at(jax.tree.map(lambda x: jnp.zeros_like(x[0]), steps.direction))
    losses = jax.vmap(loss_at)(steps.direction)
    losses = jnp.where(jnp.isfinite(steps.bend), losses, jnp.inf)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    enough = start - losses + rounding_level(start) >= ratio * steps.reduction
    passed = enough & (losses < jnp.inf)
    best = jnp.argmin(losses)
    otherwise = jnp.where(losses[best] < start, best, len(losses) - 1)
    k = jnp.where(jnp.any(passed), jnp.argmax(passed), otherwise)
    return jax.tree.map(lambda x: x[k], steps), jnp.any(passed)
