"""Ready-made optimizers: chains with good defaults."""

from collections.abc import Callable
from typing import Any

import optax

from ncg_optax._utils import validate
from ncg_optax.curvature.gauss_newton import Curvature, gauss_newton, hessian
from ncg_optax.curvature.sampling.settings import Sampling, sampling
from ncg_optax.globalization.armijo import LineSearch, armijo, safeguard
from ncg_optax.globalization.damping import Damping, levenberg_marquardt
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.preconditioners.kronecker import kronecker
from ncg_optax.solvers.averaged_gradient import averaged_gradient
from ncg_optax.solvers.base import Solver
from ncg_optax.solvers.cg import cg
from ncg_optax.solvers.secant_pairs import quasi_newton
from ncg_optax.step.transform import scale_by_newton_cg

PyTree = Any


def newton_cg(
    learning_rate: optax.ScalarOrSchedule | None = 1.0,
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
    r"""Newton-CG: truncated Newton with exact Hessian products.

    Each update solves

    .. math::
      (B + \lambda I)\, d = -g

    approximately, by a few iterations of conjugate gradients that need ``B`` only
    through products ``B v``, checks the direction, and takes the step
    :math:`\theta \leftarrow \theta + \eta\, s\, d` with :math:`\eta` the learning rate
    and :math:`s` from the line search. It needs no tuning on deterministic (full
    batch) problems: leave the learning rate at 1. The products cost about 1.5
    gradients each. Jit the whole step: eager calls compile the solver's loop again
    each time.

    Args:
      learning_rate: :math:`\eta`, a number, an optax schedule, or None for 1. It
        scales the accepted step; line search and damping look at the full one.
      curvature: ``B``: :func:`hessian`, :func:`gauss_newton`,
        :func:`empirical_fisher`.
      damping: :math:`\lambda`: :func:`levenberg_marquardt`, a number or an optax
        schedule of the step count, in units of the curvature.
      solver: :func:`cg`, :func:`steihaug`, :func:`minres`, :func:`residual_space`,
        :func:`averaged_gradient`, or :func:`quadratic_momentum` or
        :func:`quasi_newton` around one of the others.
      preconditioner: ``M`` near the inverse of ``B``, see :class:`Preconditioner`.
      linesearch: :func:`armijo`, :func:`safeguard` for mini-batches, or None for the
        full step: without a look where it leads if the damping is fixed, otherwise the
        loss there is needed anyhow, and if it rises there is no step. An optax line
        search may be chained behind :func:`scale_by_newton_cg` instead, with a fixed
        damping.
      mask: a pytree of bools (or a prefix, or a function of the parameters that
        returns one): train the leaves that are True. Products are computed for these
        only; the others get zero updates.
      sampling: which examples the curvature sees, and how many go through memory at a
        time: see :func:`sampling`.
      axis_name: mapped axis name(s) of pmap, shard_map or vmap over which the batch
        is spread. Gradients, losses and products are averaged over them. Under
        ``shard_map`` take the gradient with :func:`value_and_grad`.
      seed: of the randomised parts (preconditioners).

    Returns:
      A `optax.GradientTransformationExtraArgs`. Its ``update(grads, state, params,
      value_fn=..., **extra)`` takes the loss as a function of the parameters; extra
      arguments that ``value_fn`` names are passed to it, ``value`` and ``grad`` are
      accepted as for optax's line searches, unknown ones are ignored. The updates are
      zero if a step is rejected. :func:`get_info` reads what happened.

    Raises:
      TypeError: if a setting is not what its name says. In ``update``: if
        ``value_fn`` is no function, returns no real scalar or lacks an argument, or
        if a trained leaf is not floating-point or complex.
      ValueError: if a number is out of range. In ``update``: if ``params`` or
        ``value_fn`` is missing or gradients and parameters differ in structure.

    References:
      Nocedal and Wright, Numerical Optimization, 2006, chapter 7; Martens, Deep
      learning via Hessian-free optimization, 2010; Reiz, Neckel and Bungartz, Neural
      nets with a Newton conjugate gradient method on multiple GPUs, 2022.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> def loss(w):
      ...     return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2
      >>> tx = ncg.newton_cg()
      >>> @jax.jit
      ... def step(w, state):
      ...     value, grads = jax.value_and_grad(loss)(w)
      ...     updates, state = tx.update(
      ...         grads, state, w, value=value, grad=grads, value_fn=loss
      ...     )
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.array([-1.2, 1.0])
      >>> state = tx.init(w)
      >>> for _ in range(30):
      ...     w, state = step(w, state)
      >>> print(jnp.round(w, 3))
      [1. 1.]
    """
    newton = scale_by_newton_cg(
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
    return optax.chain(newton, _scale(learning_rate))


def hessian_free(
    learning_rate: optax.ScalarOrSchedule | None = 1.0,
    *,
    curvature: Curvature = gauss_newton(),
    damping: float | optax.Schedule | Damping = levenberg_marquardt(maximum=1.0),
    solver: Solver = quasi_newton(
        cg(maxiter=optax.linear_schedule(4, 20, 300), rtol=0.2, forcing=None)
    ),
    preconditioner: Preconditioner | None = kronecker(),
    linesearch: LineSearch | None = armijo(),
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    sampling: Sampling = sampling(1 / 4, min_examples=128, grow_below=0.4),
    axis_name: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Hessian-free optimisation of neural networks: the preset of :func:`newton_cg`.

    Gauss-Newton curvature, which is never negative for a convex loss, on a quarter of
    the examples (but 128 of them at least) while that tells enough about the others,
    and on all of them from there on; a Kronecker-factored preconditioner, which learns
    from the gradients of the last five steps as well (:func:`quasi_newton`); and short
    solves. Many of these beat few long ones early, longer ones pay late: of at most
    four iterations at first, about one more every twenty steps, up to twenty. A step
    costs three to eight gradients at first. Needs a :class:`CompositeLoss` as
    ``value_fn``, with its data bound or given to ``update``.

    Damping starts at 1e-4 of the curvature's own scale and never rises above that
    (``maximum=1.0``): so few iterations hardly feel it, their ratios are noise where
    the curvature is a sample, and a rule that answers bad ratios with more damping
    stalls; the line search deals with them.

    For losses that are the same at every step: the full batch, or one so large that it
    nearly is. For mini-batches there is :func:`stochastic_hessian_free`. With dropout,
    past gradients are of other losses: ``solver=quadratic_momentum(cg(maxiter=5,
    rtol=0.2, forcing=None))`` has its momentum from the model of this step alone.

    Args:
      learning_rate: as for :func:`newton_cg`, like all the others.
      curvature: ``B``.
      damping: :math:`\lambda`.
      solver: of the damped system.
      preconditioner: ``M`` near the inverse of ``B``.
      linesearch: :func:`armijo` or None.
      mask: which leaves to train.
      sampling: which examples the curvature sees.
      axis_name: mapped axis name(s) the batch is spread over.
      seed: of the randomised parts.

    Returns:
      A `optax.GradientTransformationExtraArgs`, as :func:`newton_cg`.

    Raises:
      TypeError: as :func:`newton_cg`, and in ``update`` if ``value_fn`` is not a
        :class:`CompositeLoss`.
      ValueError: as :func:`newton_cg`.

    References:
      Martens, Deep learning via Hessian-free optimization, 2010; Martens and Grosse,
      Optimizing neural networks with Kronecker-factored approximate curvature, 2015;
      Morales and Nocedal, Automatic preconditioning by limited memory quasi-Newton
      updating, 2000.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> x = jnp.linspace(-2, 2, 20)
      >>> loss = ncg.CompositeLoss(
      ...     lambda p, x: jnp.tanh(x * p["a"] + p["b"]),
      ...     lambda outputs, y: jnp.mean((outputs - y) ** 2),
      ... ).bind(x=x, y=jnp.tanh(2 * x - 1))
      >>> tx = ncg.hessian_free()
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
    return newton_cg(
        learning_rate,
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


def stochastic_hessian_free(
    learning_rate: optax.ScalarOrSchedule | None = 0.4,
    *,
    curvature: Curvature = gauss_newton(),
    damping: float | optax.Schedule | Damping = levenberg_marquardt(calibration=1e-3),
    solver: Solver = averaged_gradient(0.9),
    preconditioner: Preconditioner | None = kronecker(
        refresh=optax.linear_schedule(1, 10, 20),
        probes=1,
        first_probes=16,
        damping=0.5,
        damping_halving=None,
    ),
    linesearch: LineSearch | None = safeguard(),
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    sampling: Sampling = sampling(1 / 4, min_examples=128),
    axis_name: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Hessian-free optimisation on mini-batches: the preset of :func:`newton_cg`.

    On a mini-batch an exact step fits the noise of the batch, and so do a step size and
    a momentum that are fitted to it (:func:`hessian_free`). So this preset averages
    before it solves: it makes one preconditioned step for the running mean of some ten
    gradients, as long as the curvature of the present batch allows, but no longer than
    the preconditioner's own (:func:`averaged_gradient`), times a fixed learning rate.
    The preconditioner is an average over twenty batches, and the own damping of its
    factors stays at half of their mean eigenvalues, so that directions of little
    curvature, about which a batch says nothing, are not blown up. A step costs 1.7
    gradients.

    A line search on one batch would reject what the average over many knows better.
    This one only looks out for steps that go far wrong (:func:`safeguard`), on the
    curvature's examples, and the damping that all leaves share rises after these and
    falls after good ones. It matters where the loss has terms that the Gauss-Newton
    matrix does not see, as the prior of a Bayesian network.

    Give it batches of about five hundred examples, and look at a running mean of the
    iterates (`optax.incremental_update`, with a step size of about 1/30): the noise
    that is left averages out. Lower the learning rate for smaller batches, or let a
    schedule lower it to the end. Of sequences count the tokens, and lower
    ``min_examples`` as well: ``sampling(1/4, min_examples=8)`` for 32 of 64 tokens.

    Args:
      learning_rate: factor on the step, as for :func:`newton_cg`, like all the others.
      curvature: ``B``.
      damping: :math:`\lambda`.
      solver: of the damped system.
      preconditioner: ``M`` near the inverse of ``B``.
      linesearch: :func:`safeguard` or None; :func:`armijo` with a solver for single
        batches.
      mask: which leaves to train.
      sampling: which examples the curvature sees: a quarter, at least 128.
      axis_name: mapped axis name(s) the batch is spread over.
      seed: of the randomised parts.

    Returns:
      A `optax.GradientTransformationExtraArgs`, as :func:`newton_cg`.

    Raises:
      TypeError: as :func:`hessian_free`.
      ValueError: as :func:`newton_cg`, and for a ``linesearch`` that would reject the
        directions of this solver.

    References:
      Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate
      curvature, 2015; Kiros, Training neural networks with stochastic Hessian-free
      optimization, 2013.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda p, x: jnp.tanh(x * p["a"] + p["b"]),
      ...     lambda outputs, y: jnp.mean((outputs - y) ** 2),
      ... )
      >>> tx = ncg.stochastic_hessian_free()
      >>> @jax.jit
      ... def step(params, average, state, x):
      ...     batch = dict(x=x, y=jnp.tanh(2 * x - 1))
      ...     grads = jax.grad(loss)(params, **batch)
      ...     updates, state = tx.update(grads, state, params, value_fn=loss, **batch)
      ...     params = optax.apply_updates(params, updates)
      ...     return params, optax.incremental_update(params, average, 0.1), state
      >>> params = average = {"a": jnp.array(0.5), "b": jnp.array(0.0)}
      >>> state = tx.init(params)
      >>> x = jax.random.uniform(jax.random.key(0), (120, 500), minval=-2, maxval=2)
      >>> for batch in x:
      ...     params, average, state = step(params, average, state, batch)
      >>> grid = jnp.linspace(-2, 2, 500)
      >>> bool(loss(average, x=grid, y=jnp.tanh(2 * grid - 1)) < 1e-3)
      True
    """
    return newton_cg(
        learning_rate,
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


def _scale(
    learning_rate: optax.ScalarOrSchedule | None,
) -> optax.GradientTransformation:
    if learning_rate is None:
        return optax.scale(-1.0)
    if not callable(learning_rate):
        validate.number("learning_rate", learning_rate, low=0.0)
    return optax.scale_by_learning_rate(learning_rate)
