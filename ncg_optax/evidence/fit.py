"""A fit of a small data set that finds its weight decay and its noise level itself."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax._utils import names, pytree, validate
from ncg_optax._utils.compile_log import LoggedJit
from ncg_optax._utils.status import Status
from ncg_optax.evidence import loop as loops
from ncg_optax.evidence.likelihoods import LIKELIHOODS, check_targets, check_values
from ncg_optax.evidence.result import BayesianFit
from ncg_optax.losses.arguments import select_arguments, unused_names
from ncg_optax.minimization.arguments import (
    Constants,
    from_cache,
    with_constants,
    without_constants,
)

PyTree = Any

MAX_SIZE = 10_000  # of the dense matrix


def bayesian_fit(
    model_fn: Callable[..., jax.Array],
    params: PyTree,
    y: jax.typing.ArrayLike,
    *,
    likelihood: str = "normal",
    maxiter: int = 200,
    **data: Any,
) -> BayesianFit:
    r"""Fits a model to a small data set; weight decay and noise follow from the data.

    Bayesian regularisation: the parameters minimise

    .. math::
      F(\theta) = \frac{\beta}{2} \sum_i (m(\theta, x_i) - y_i)^2
      + \frac{\alpha}{2} |\theta|^2,

    where the prior's precision :math:`\alpha` (the weight decay) and the precision of
    the noise :math:`\beta` are computed again after every Levenberg-Marquardt step
    (MacKay 1992; Foresee and Hagan 1997, whose method is MATLAB's ``trainbr``):

    .. math::
      \gamma = n - \alpha \operatorname{tr} (\beta J^T J + \alpha I)^{-1}, \qquad
      \alpha = \frac{\gamma}{|\theta|^2}, \qquad
      \beta = \frac{N - \gamma}{\sum_i (m(\theta, x_i) - y_i)^2}.

    :math:`\gamma` is the effective number of parameters. All examples train: no
    validation set is needed, and nothing has to be tuned. The steps end where the
    evidence, the probability of the targets given the model, has its maximum, and the
    point with the largest evidence is returned. For a network these updates do not
    always raise the evidence, and those that follow overfit.

    All parameters, biases too, have the same prior: shift and scale inputs and targets
    to mean 0 and variance 1. Of networks of several sizes, or starts, take the one with
    the largest ``log_evidence``. Use float64 if you can.

    Each step needs the Jacobian and a dense matrix whose size is the smaller of the
    numbers of residuals and parameters; with size k and the larger number l it takes
    about :math:`2 k^2 l` operations, and k l numbers of memory.

    Args:
      model_fn: ``model_fn(params, **data)``, the outputs, a real array with the
        examples along the first axis.
      params: where to start, a pytree of real arrays: random weights, as for any
        training. Their size sets the first :math:`\alpha`.
      y: the targets.
      likelihood: ``"normal"``: ``y`` has the shape of the outputs, and each output
        (the axes after the first) a noise level of its own. ``"bernoulli"``: the
        outputs are the log-odds that ``y`` is 1 and not 0, in the same shape.
        ``"categorical"``: the outputs have logits along the last axis, and ``y`` the
        shape of the others and the number of the class. The last two have no
        :math:`\beta`.
      maxiter: largest number of steps.
      **data: further arguments of ``model_fn``, by name, such as the inputs. With the
        examples along the first axis the Jacobian is computed example by example.

    Returns:
      A :class:`BayesianFit`, whose ``predict(**data)`` gives the outputs for new inputs
      and their standard deviations.

    Raises:
      TypeError: if ``model_fn`` does not take or lacks an argument, or does not return
        a real array, or if the parameters or ``y`` are not real.
      ValueError: if a setting is out of range, if the shape or the values of ``y`` do
        not fit, or if there are more than 10,000 residuals and parameters.

    References:
      MacKay, Bayesian interpolation and A practical Bayesian framework for
      backpropagation networks, Neural Computation 4, 1992. Foresee and Hagan,
      Gauss-Newton approximation to Bayesian learning, ICNN 1997.

    Examples:
      A line through points with noise of standard deviation 0.1:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> x = jnp.linspace(-1, 1, 50)
      >>> y = 2 * x + 0.1 * jax.random.normal(jax.random.key(0), (50,))
      >>> line = lambda w, x: w[0] + w[1] * x
      >>> fit = ncg.bayesian_fit(line, jnp.ones(2), y, x=x)
      >>> print(fit.params.round(1), fit.noise.round(1), fit.effective_parameters < 2)
      [0. 2.] 0.1 True
      >>> outputs, std = fit.predict(x=jnp.array([1.0, 100.0]))
      >>> print(outputs.round(), std.round(1))
      [  2. 197.] [0.1 2.4]
    """
    validate.function("bayesian_fit: model_fn", model_fn)
    validate.choice("bayesian_fit: likelihood", likelihood, tuple(LIKELIHOODS))
    validate.integer("bayesian_fit: maxiter", maxiter, low=0)
    unused, known = unused_names((model_fn,), data)
    if unused:
        raise TypeError(
            f"bayesian_fit: model_fn does not take {unused[0]}"
            f"{names.meant(unused[0], known)}; it takes {names.listed(known)}."
        )
    data = select_arguments("bayesian_fit: model_fn", model_fn, data)
    validate.numeric_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    validate.trainable_tree("params", params)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise TypeError("bayesian_fit: params must be real, got complex ones.")
    if y is None:
        raise TypeError("bayesian_fit: y must be an array, got None.")
    validate.numeric_tree("y", y)
    y = jnp.asarray(y)
    check_values(likelihood, y)
    arrays, constants = without_constants(data)
    settings = _Settings(model_fn, likelihood, constants)
    program = from_cache(_program, settings, model_fn)
    estimate = program(params, y, arrays, maxiter)
    return BayesianFit(*estimate, model_fn=model_fn, likelihood=likelihood)


class _Settings(NamedTuple):
    """The arguments of :func:`bayesian_fit` that its program depends on."""

    model_fn: Callable[..., jax.Array]
    likelihood: str
    constants: Constants


@functools.lru_cache(maxsize=32)
def _program(settings: _Settings) -> LoggedJit:
    """The compiled fit."""

    def fit(params, y, arrays, maxiter):
        with jax.default_matmul_precision("highest"):
            data = with_constants(arrays, settings.constants)
            return _fit(settings, params, y, data, maxiter)

    return LoggedJit("bayesian_fit", fit)


def _fit(settings: _Settings, params: PyTree, y: jax.Array, data: Any, maxiter: Any):
    """The fields of a :class:`BayesianFit`."""
    likelihood = LIKELIHOODS[settings.likelihood]
    theta, unravel = ravel_pytree(pytree.widen(params))

    def model(theta, **data):
        return settings.model_fn(unravel(theta), **data)

    outputs = jax.eval_shape(lambda: model(theta, **data))
    check_targets(settings.likelihood, outputs, y)
    if min(outputs.size, theta.size) > MAX_SIZE:
        raise ValueError(
            f"bayesian_fit is for at most {MAX_SIZE} residuals or parameters, got "
            f"{outputs.size} and {theta.size}: use an optimizer with weight decay and "
            "a validation set."
        )
    if likelihood.has_noise:
        y = y.astype(theta.dtype)
    problem = loops.Problem(model, likelihood, data, y, maxiter)
    end = loops.advance(problem, loops.start(problem, theta))
    best = end.best
    return (
        pytree.cast_like(unravel(best.theta), params),
        jax.lax.rsqrt(best.precisions.noise),
        best.precisions.prior,
        jnp.sum(best.posterior.determined()),
        best.log_evidence,
        end.k,
        end.status,
        end.status == Status.CONVERGED_EVIDENCE,
        best.posterior,
        jax.lax.rsqrt(best.precisions.prior),
        end.mode,
    )
