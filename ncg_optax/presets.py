"""Ready-made optimizers: one signature, and a table of defaults for each.

``DEFAULTS`` contains the tables: ``DEFAULTS[preset][setting]``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from ncg_optax._utils import validate
from ncg_optax._utils.schedules import linear_schedule
from ncg_optax._utils.with_defaults import defaults_of, with_defaults
from ncg_optax.curvature.base import Curvature
from ncg_optax.curvature.gauss_newton import gauss_newton
from ncg_optax.curvature.hessian import hessian
from ncg_optax.curvature.sampling.settings import Sampling, sampling
from ncg_optax.globalization.armijo import armijo
from ncg_optax.globalization.base import Damping, LineSearch
from ncg_optax.globalization.damping import levenberg_marquardt
from ncg_optax.globalization.safeguard import safeguard
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

    approximately by a few iterations of conjugate gradients, which need only products
    ``B v``. Then it checks the direction and takes the step
    :math:`\theta \leftarrow \theta + \eta\, s\, d` with :math:`\eta` the learning rate
    and :math:`s` the step size of the line search. Deterministic (full batch) problems
    need no tuning: leave the learning rate at 1. A product costs about 1.5 gradients.
    Jit the whole step: without jit each call compiles the solver's loop again.

    Args:
      learning_rate: :math:`\eta`, a number, an optax schedule, or None for 1. It
        scales the accepted step; line search and damping ignore it.
      curvature: ``B``: :func:`hessian`, :func:`gauss_newton`, :func:`empirical_fisher`.
      damping: :math:`\lambda`, in units of the curvature: :func:`levenberg_marquardt`,
        a number, or an optax schedule of the number of steps done.
      solver: :func:`cg`, :func:`steihaug`, :func:`minres`, :func:`residual_space`,
        :func:`averaged_gradient`, or :func:`quadratic_momentum` or
        :func:`quasi_newton` around one of the others.
      preconditioner: ``M`` near the inverse of ``B + lambda I``; None for no
        preconditioner. See :class:`Preconditioner`.
      linesearch: :func:`armijo`, :func:`safeguard` for mini-batches, or None for the
        full step. With None the loss at the full step is evaluated only if the damping
        rule or the solver needs it; then the step is rejected if the loss rises. With a
        fixed damping an optax line search may follow :func:`scale_by_newton_cg`.
      mask: a pytree of bools (or a prefix, or a function of the parameters that
        returns one): leaves with True are trained. Products are computed for these
        only; the others get zero updates. None trains all leaves.
      sampling: which examples the curvature is computed on, and how many are processed
        at a time: see :func:`sampling`.
      axis_name: mapped axis name(s) of pmap, shard_map or vmap over which the batch
        is split. Gradients, losses and products are averaged over them. Under
        ``shard_map`` take the gradient with :func:`value_and_grad`.
      seed: seed of the random numbers of the preconditioner.

    Returns:
      A `optax.GradientTransformationExtraArgs`. Its ``update(grads, state, params,
      value_fn=..., **extra)`` takes the loss as a function of the parameters. Extra
      arguments are passed to ``value_fn`` if it has parameters of these names; others
      are ignored. ``value`` and ``grad`` are accepted, as by optax's line searches. The
      updates are zero if a step is rejected. :func:`get_info` returns the measurements.

    Raises:
      TypeError: if a setting has the wrong type. In ``update``: if ``value_fn`` is not
        a function, does not return a real scalar or lacks an argument, or if a trained
        leaf is not floating-point or complex.
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


def _scale(rate: optax.ScalarOrSchedule | None) -> optax.GradientTransformation:
    """Multiplies the updates by the negative learning rate."""
    if rate is None:
        return optax.scale(-1.0)
    if not callable(rate):
        validate.number("learning_rate", rate, low=0.0, high_open=True)
        if isinstance(rate, np.generic):
            # A NumPy number would widen the updates of bfloat16 parameters.
            rate = float(rate)
    else:
        validate.schedule("learning_rate", rate)
    return optax.scale_by_learning_rate(rate)


NEWTON_CG = defaults_of(newton_cg)

HESSIAN_FREE = NEWTON_CG | {
    "curvature": gauss_newton(),
    "damping": levenberg_marquardt(maximum=1.0),
    "solver": quasi_newton(
        cg(maxiter=linear_schedule(4, 20, 300), rtol=0.2, forcing=None)
    ),
    "preconditioner": kronecker(),
    "sampling": sampling(1 / 4, min_examples=128, grow_below=0.4),
}

STOCHASTIC_HESSIAN_FREE = HESSIAN_FREE | {
    "learning_rate": 0.4,
    "damping": levenberg_marquardt(calibration=1e-3),
    "solver": averaged_gradient(0.9),
    "preconditioner": kronecker(
        refresh=linear_schedule(1, 10, 20),
        probes=1,
        damping=0.5,
        damping_halving=None,
    ),
    "linesearch": safeguard(),
    "sampling": sampling(1 / 4, min_examples=128),
}

DEFAULTS = {
    "newton_cg": NEWTON_CG,
    "hessian_free": HESSIAN_FREE,
    "stochastic_hessian_free": STOCHASTIC_HESSIAN_FREE,
}


hessian_free = with_defaults(
    "hessian_free",
    newton_cg,
    HESSIAN_FREE,
    r"""
    Hessian-free optimisation of neural networks: :func:`newton_cg` for full batches.

    The curvature is the Gauss-Newton matrix, which is never negative for a convex loss.
    It is computed on a quarter of the examples, but on 128 of them at least, and on all
    of them once the sample no longer represents the batch (:func:`sampling`). The
    preconditioner has Kronecker factors and learns from the gradients of the last five
    steps (:func:`quasi_newton`). Solves are short: at most four iterations at first,
    one more about every twenty steps, and twenty from step 300 on. Early in a run many
    short solves are better than few long ones; late in a run longer solves are better.
    A step costs three to eight gradients at first. ``value_fn`` must be a
    :class:`CompositeLoss`, with its data bound or given to ``update``.

    Damping starts at 1e-4 of the curvature's own scale and never rises above that
    (``maximum=1.0``). Damping of this size hardly changes so few iterations, and the
    reduction ratio is noisy if the curvature is computed on a sample. Without the bound
    the damping would rise after bad ratios until the steps are too short. The line
    search shortens the steps that are too long.

    The preset is for losses that are the same at every step: the full batch, or a batch
    so large that its loss hardly changes. For mini-batches there is
    :func:`stochastic_hessian_free`. With dropout the past gradients belong to other
    losses: use ``solver=quadratic_momentum(cg(maxiter=5, rtol=0.2, forcing=None))``,
    which takes its momentum from the model of the present step alone.

    ---
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
    """,
)

stochastic_hessian_free = with_defaults(
    "stochastic_hessian_free",
    newton_cg,
    STOCHASTIC_HESSIAN_FREE,
    r"""
    Hessian-free optimisation on mini-batches: :func:`newton_cg` for noisy gradients.

    On a mini-batch an exact step fits the noise of the batch, and so do a step size and
    a momentum that are fitted to it. So this preset averages before it solves: it makes
    one preconditioned step for the running mean of some ten gradients
    (:func:`averaged_gradient`). The step is as long as the curvature of the present
    batch allows, but no longer than the preconditioner's own step, times a fixed
    learning rate. The preconditioner is an average over twenty batches. The own damping
    of its factors stays at half of their mean eigenvalues, so that a step along a
    direction of small curvature, which a batch does not determine, is not large. A step
    costs 1.7 gradients.

    A line search on one batch would reject steps that are good for the average over
    many. The line search of this preset only shortens steps along which the loss rises
    by more than the quadratic model allows (:func:`safeguard`), and it uses the
    curvature's examples. The damping of all leaves rises after such steps and falls
    after good ones. It matters where the loss has terms that the Gauss-Newton matrix
    does not contain, as the prior of a Bayesian network.

    Use batches of about five hundred examples, and evaluate the model at a running mean
    of the iterates (`optax.incremental_update` with a step size of about 1/30), which
    averages the remaining noise. Lower the learning rate for smaller batches, or let a
    schedule lower it towards the end. For sequences count the tokens, and lower
    ``min_examples`` as well: ``sampling(1/4, min_examples=8)`` for 32 sequences of 64
    tokens.

    ---
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
    """,
)
