"""Cheap steps first, exact Gauss-Newton steps as soon as they pay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax.curvature.gauss_newton import gauss_newton
from ncg_optax.losses.objective import Objective, as_objective
from ncg_optax.presets import HESSIAN_FREE
from ncg_optax.solvers.residual_space import cost
from ncg_optax.solvers.residual_space.solver import residual_space
from ncg_optax.solvers.residual_space.weighted_jacobian import has_examples
from ncg_optax.step import mask as masks
from ncg_optax.step.info import NewtonCGInfo, first_info
from ncg_optax.step.state import ScaleByNewtonCGState
from ncg_optax.step.transform import scale_by_newton_cg

PyTree = Any

# Exact steps are made for systems of at most this size, with at most this many numbers
# in the Jacobian if that is stored.
MAX_SIZE, MAX_NUMBERS = 4096, 100_000_000
# A stage of exact steps has about so many: their damping has to settle first.
STAGE = 10
# The work of the other kind that is not measured after a change, in stages.
WARM_UP = 0.5
# Stages of cheap steps before exact ones are tried again, and how many more after each
# trial that is lost.
PATIENCE, MORE = 4, 2
# After this part of a stage, and so many gradients, a trial ends as soon as its rate is
# below that part of the other one.
SHORT, FEWEST, HOPELESS = 0.25, 40.0, 0.5

CHEAP, EXACT = 0, 1


class ScientificState(NamedTuple):
    """State of :func:`scientific`.

    Attributes:
      kind: which steps are made: 0 those of :func:`hessian_free`, 1 exact ones; int32,
        shape=().
      rates: of both kinds, the logarithm of the loss that a gradient's worth of work
        removed in the last stage, shape=(2,); infinite before the first one.
      progress: logarithm of the loss removed in this stage, shape=().
      spent: work in this stage, in gradients; negative during the warm-up after a
        change, shape=().
      waited: stages since the other kind was tried, int32, shape=().
      patience: stages of cheap steps before exact ones are tried again, int32,
        shape=().
      is_trial: whether this stage tries the other kind, bool, shape=().
      cheap: state of :func:`hessian_free`, without its measurements.
      exact: state of the exact steps, without their measurements.
      info: the measurements of the last step.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.scientific().init(jnp.zeros(3))
      >>> print(state.kind, ncg.explain(ncg.get_info(state).status))
      0 No step has been taken yet.
    """

    kind: jax.Array
    rates: jax.Array
    progress: jax.Array
    spent: jax.Array
    waited: jax.Array
    patience: jax.Array
    is_trial: jax.Array
    cheap: ScaleByNewtonCGState
    exact: ScaleByNewtonCGState
    info: NewtonCGInfo


def scientific(
    *,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Full-batch least squares to many digits: cheap steps, then exact ones.

    For physics-informed networks, inverse problems and small regressions, best in
    float64. Training starts with the steps of :func:`hessian_free`, which cost 3 to
    30 gradients. It goes over to Gauss-Newton steps that are solved exactly and
    accelerated (:func:`residual_space`) when these make more progress for their cost,
    and back if they do not. There is nothing to set, and the number of steps need not
    be known.

    Both kinds of steps are measured by the logarithm of the loss that a gradient's
    worth of work removes,

    .. math::
      r = \frac{\sum_k \log f(\theta_k) - \log f(\theta_{k+1})}
               {\sum_k \text{gradient equivalents of step } k},

    over a stage of as much work as ten exact steps. After the first stage of cheap
    steps there is one of exact steps. The kind with the larger rate continues. As soon
    as its rate falls below the last one of the other kind, that is tried again; exact
    steps also after 4 stages of cheap ones, and after 2 stages more each time that they
    lose, so that the share of lost trials goes to zero. The first half of a stage's
    work after a change is not measured. From a quarter of a stage and 40 gradients on,
    a trial ends as soon as its rate is below half of the other one.

    With more than 4096 residuals *and* parameters, or a Jacobian of more than 1e8
    numbers, there are cheap steps only. Bind the data to the loss, or give it to
    ``update``: with data in a closure an exact step costs a gradient for each residual,
    and is tried late. Of a model that mixes examples (batch statistics) exact steps are
    not exact, and cheap ones are made. The loss should be the same at every step, not
    negative, and near zero at its minimum: of other losses the logarithm says little.

    A step never increases the loss beyond rounding. The updates are zero if a step is
    rejected, and :func:`get_info` returns the measurements of the last step, of either
    kind.

    Args:
      mask: a pytree of bools (or a prefix, or a function of the parameters that returns
        one): leaves with True are trained. None trains all leaves.
      axis_name: mapped axis name(s) over which the batch is split, see
        :func:`newton_cg`.
      seed: seed of the random numbers of the preconditioner.

    Returns:
      A `optax.GradientTransformationExtraArgs`. Its ``update(grads, state, params,
      value_fn=..., **extra)`` takes a :class:`CompositeLoss`, as :func:`hessian_free`.

    Raises:
      TypeError: if a setting has the wrong type. In ``update``: if ``value_fn`` is not
        a :class:`CompositeLoss`, or as :func:`newton_cg`.
      ValueError: as :func:`newton_cg`.

    References:
      Transtrum and Sethna, Improvements to the Levenberg-Marquardt algorithm for
      nonlinear least-squares minimization, 2012; Chen and Heyl, Empowering deep neural
      quantum states through efficient optimization, 2024; Martens, Deep learning via
      Hessian-free optimization, 2010.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> x = jnp.linspace(-2, 2, 20)
      >>> loss = ncg.CompositeLoss(
      ...     lambda p, x: jnp.tanh(x * p["a"] + p["b"]),
      ...     lambda outputs, y: jnp.mean((outputs - y) ** 2),
      ... ).bind(x=x, y=jnp.tanh(2 * x - 1))
      >>> tx = ncg.scientific()
      >>> @jax.jit
      ... def step(params, state):
      ...     grads = jax.grad(loss)(params)
      ...     updates, state = tx.update(grads, state, params, value_fn=loss)
      ...     return optax.apply_updates(params, updates), state
      >>> params = {"a": jnp.array(0.5), "b": jnp.array(0.0)}
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     params, state = step(params, state)
      >>> print(jnp.round(params["a"], 2), jnp.round(params["b"], 2))
      2.0 -1.0
    """
    common = {"mask": mask, "axis_name": axis_name, "seed": seed}
    settings = {k: v for k, v in HESSIAN_FREE.items() if k != "learning_rate"}
    cheap = scale_by_newton_cg(**settings | common)
    # One way to compute the rows is compiled, not both. Rows of single examples of a
    # model that mixes them are wrong: the step is still a descent direction, as the
    # gradient is right, but it makes little progress, and cheap steps are made.
    by_example, by_batch = (
        scale_by_newton_cg(
            curvature=gauss_newton(),
            damping=0.0,
            solver=residual_space(jacobian=jacobian),
            **common,
        )
        for jacobian in ("per_example", "whole_batch")
    )
    axes = reductions.as_axes(axis_name)

    def init(params):
        first: Any = cheap.init(params)
        other: Any = by_example.init(params)
        dtype = first.info.loss.dtype
        return ScientificState(
            kind=jnp.asarray(CHEAP, jnp.int32),
            rates=jnp.full(2, jnp.inf, dtype),
            progress=jnp.zeros((), dtype),
            spent=jnp.zeros((), dtype),
            waited=jnp.zeros((), jnp.int32),
            patience=jnp.asarray(PATIENCE, jnp.int32),
            is_trial=jnp.zeros((), bool),
            cheap=first._replace(info=()),
            exact=other._replace(info=()),
            info=first_info(dtype),
        )

    def update(updates, state, params=None, *, value_fn=None, **extra):
        if params is None:
            raise ValueError("scientific needs params: update(grads, state, params).")
        validate.state("scientific", state, ScientificState)

        def run(name, tx):
            own = getattr(state, name)._replace(info=state.info)
            steps, own = tx.update(updates, own, params, value_fn=value_fn, **extra)
            others = {name: own._replace(info=())}
            # The zeros of frozen leaves may be of a dtype without negative numbers.
            steps = jax.tree.map(
                lambda x: -x if jnp.issubdtype(x.dtype, jnp.inexact) else x, steps
            )
            return steps, state._replace(info=own.info, **others)

        objective = as_objective(value_fn, extra, axes)
        exact = _exact_steps(objective, params, masks.resolve(mask, params))
        if exact is None:
            return run("cheap", cheap)
        steps, new = jax.lax.cond(
            state.kind == EXACT,
            lambda: run("exact", by_example if exact.by_example else by_batch),
            lambda: run("cheap", cheap),
        )
        return steps, _judged(new, STAGE * exact.work)

    return optax.GradientTransformationExtraArgs(init, update)


class _Exact(NamedTuple):
    by_example: bool  # whether rows are passes through single examples
    work: float  # of a step, in gradients


def _exact_steps(
    objective: Objective, params: PyTree, trained: PyTree
) -> _Exact | None:
    """How exact steps are made; None if there shall be none."""
    model, _ = objective.model_and_loss("scientific")
    outputs = jax.tree.leaves(jax.eval_shape(model, params))
    devices = reductions.size(objective.axes)
    residuals = devices * sum(x.size for x in outputs)
    parameters = sum(x.size for x in jax.tree.leaves(masks.select(trained, params)))
    stored = residuals * parameters if residuals <= parameters else 0
    if min(residuals, parameters) > MAX_SIZE or stored > MAX_NUMBERS:
        return None
    sizes = residuals, parameters
    algebra = cost.matrix_operations(*sizes) + cost.factorisation_operations(*sizes)
    by_example = has_examples(objective, params)
    passes = 4.0 if by_example else 4.0 + gauss_newton().cost * residuals
    work = passes + algebra / cost.gradient_operations(objective, params)
    return _Exact(by_example, work)


def _judged(state: ScientificState, stage: float) -> ScientificState:
    """The state after a step: its progress is counted, and a stage may end.

    Args:
      state: with the measurements of the step.
      stage: the work of a stage, in gradients.
    """
    info = state.info
    after = info.loss - info.actual_reduction
    # Neither a rejected step nor a loss without a logarithm is progress.
    better = (info.actual_reduction > 0) & (after > 0)
    gain = jnp.log(jnp.where(better, info.loss, 1) / jnp.where(better, after, 1))
    counts = state.spent >= 0  # else this is the warm-up
    gain = jnp.where(counts, gain, 0).astype(state.progress.dtype)
    progress = state.progress + gain
    spent = state.spent + info.gradient_equivalents.astype(state.spent.dtype)
    # The step that ends the warm-up is not measured either.
    spent = jnp.where(counts, spent, jnp.minimum(spent, 0))

    other = state.rates[1 - state.kind]
    # A rate of long ago, at a higher loss, may have been the reason for a trial.
    hopeless = state.is_trial & (progress < HOPELESS * other * spent)
    short = min(max(SHORT * stage, FEWEST), stage)
    needed = jnp.where(hopeless, short, stage)
    ends = spent >= jnp.maximum(needed, jnp.finfo(spent.dtype).tiny)
    rate = progress / jnp.where(ends, spent, 1)
    behind = jnp.logical_not(rate > other)  # or not known yet
    waited = state.waited + 1
    lost = state.is_trial & behind
    is_exact = state.kind == EXACT
    # Exact steps gain as the loss falls, and cheap ones lose: these are tried again
    # only if exact ones are slower than they were.
    due = jnp.logical_not(is_exact) & (waited >= state.patience)
    tries = jnp.logical_not(state.is_trial) & (behind | due)
    changes = lost | tries
    new = state._replace(
        kind=jnp.where(changes, 1 - state.kind, state.kind),
        rates=state.rates.at[state.kind].set(rate),
        progress=jnp.zeros_like(progress),
        spent=jnp.where(changes, -WARM_UP * stage, 0).astype(spent.dtype),
        waited=jnp.where(changes, 0, waited),
        patience=state.patience + MORE * (lost & is_exact).astype(jnp.int32),
        is_trial=tries,
    )
    return pytree.where(ends, new, state._replace(progress=progress, spent=spent))
