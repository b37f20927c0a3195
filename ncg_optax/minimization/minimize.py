"""A whole minimisation: one ``lax.while_loop`` around an optax transformation."""

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from ncg_optax._utils import validate
from ncg_optax._utils.compile_log import LoggedJit
from ncg_optax.losses.objective import as_objective
from ncg_optax.minimization import loop as loops
from ncg_optax.minimization.arguments import (
    Constants,
    from_cache,
    require_known_names,
    with_constants,
    without_constants,
)
from ncg_optax.minimization.box import Box, as_box
from ncg_optax.minimization.implicit import differentiable
from ncg_optax.minimization.projected_newton import projected_newton
from ncg_optax.minimization.result import MinimizeResult
from ncg_optax.minimization.steering import Callback, steer
from ncg_optax.presets import newton_cg

PyTree = Any

# Programs that are kept; the functions and constants in them stay in memory.
CACHED_PROGRAMS = 32

_default_optimizer = functools.cache(newton_cg)


def minimize(
    value_fn: Callable[..., Any],
    params: PyTree,
    optimizer: optax.GradientTransformation | None = None,
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    maxiter: int = 1000,
    gtol: float = 1e-5,
    gtol_relative: float = 0.0,
    ftol: float = 0.0,
    xtol: float = 0.0,
    check_curvature: bool = True,
    callback: Callback | None = None,
    max_seconds: float | None = None,
    progress: bool = False,
    every: int = 1,
    **data: Any,
) -> tuple[PyTree, Any, MinimizeResult]:
    r"""Minimises a deterministic function, the whole solve on the device.

    Runs ``optimizer`` until :math:`\max_i |\partial f / \partial \theta_i| \le`
    ``gtol`` at a point where no direction of negative curvature is found: a saddle or
    a maximum is left along one, not reported as a solution. The search for it takes up
    to 20 products with the exact Hessian, from a random vector, so it may miss a
    negative eigenvalue that is small compared with the others. The best point is
    returned, up to the rounding of its value, also if the optimizer has left it.

    With ``bounds`` :math:`l \le \theta \le u` the method is projected Newton-CG: a step
    minimises the quadratic model over the box, on one face after another (Lin and Moré
    1999), and the gradient is :math:`\theta - P(\theta - \nabla f)`, with :math:`P` the
    projection to the box.

    The parameters and the value can be differentiated with respect to ``data`` and
    ``bounds``, by the implicit function theorem: at a minimum
    :math:`\nabla^2_{\theta\theta} f\, d\theta = -\nabla^2_{\theta\phi} f\, d\phi`. The
    derivatives are as accurate as the minimum: choose a small ``gtol``.

    Calls with the same ``value_fn`` and ``optimizer``, as objects, and the same shapes
    compile once. So ``value_fn`` has to be pure, as for `jax.jit`. The last 32 programs
    are kept, with what their functions close over.

    Args:
      value_fn: the loss, ``value_fn(params, **data)``, scalar or ``(loss, aux)``, or a
        :class:`CompositeLoss`.
      params: where to start, a pytree of floating-point or complex arrays. With bounds
        the start is their projection.
      optimizer: :func:`newton_cg` if None; any optax optimizer works. None if there are
        ``bounds``.
      bounds: ``(low, high)``, each a number, None for no bound on this side, or a tree
        like ``params`` whose leaves can be broadcast to those of ``params``.
      maxiter: largest number of updates.
      gtol: tolerance on the largest entry of the gradient, in units of the gradient.
      gtol_relative: tolerance on the same, in units of the largest entry of the first
        gradient; the larger of both tolerances counts.
      ftol: stop if an update lowers the loss by no more than ``ftol`` times its
        absolute value; 0 for no such test.
      xtol: stop if the norm of an update is at most ``xtol`` times ``xtol`` plus the
        norm of the parameters; 0 for no such test.
      check_curvature: whether to search for negative curvature before convergence is
        reported. Needs the Hessian of ``value_fn``.
      callback: ``callback(params, state, result)``, called after ``every`` updates with
        the present parameters and optimizer state, and the result at the best point so
        far. If it returns a true value the minimisation stops.
      max_seconds: stop after this time; the compilation counts.
      progress: whether to show a line in the terminal (by rich, if it is installed).
      every: number of updates between two calls of ``callback``, tests of the time and
        lines. Each costs a synchronisation with the device.
      **data: further arguments of ``value_fn``, by name. Those that are not arrays or
        numbers, such as strings and bools, are constants of the program; an int is an
        array.

    Returns:
      ``(params, state, result)``: the best parameters, the optimizer's last state and a
      :class:`MinimizeResult`.

    Raises:
      TypeError: as ``update`` of :func:`newton_cg`, or if a keyword argument is
        neither a setting nor an argument of ``value_fn``.
      ValueError: if a setting is out of range, if there are bounds and an optimizer, or
        if ``callback``, ``max_seconds`` or ``progress`` is used within `jax.jit`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> saddle = lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4
      >>> w, _, result = ncg.minimize(saddle, jnp.zeros(2))  # starts on the saddle
      >>> print(result.converged, jnp.round(jnp.abs(w), 3), jnp.round(result.value, 3))
      True [0. 0.707] -0.25
      >>> ncg.explain(result.status)[:9]
      'Converged'

      Bounds, and the derivative of the minimum:

      >>> def nearest(target):
      ...     f = lambda w, target: jnp.sum((w - target) ** 2)
      ...     return ncg.minimize(f, jnp.zeros(2), bounds=(0.0, 1.0), target=target)[0]
      >>> print(nearest(jnp.array([0.5, 3.0])))
      [0.5 1. ]
      >>> print(jax.jacobian(nearest)(jnp.array([0.5, 3.0])))
      [[1. 0.]
       [0. 0.]]
    """
    validate.function("minimize: value_fn", value_fn)
    require_known_names(value_fn, _setting_names(), data)
    limits = loops.Limits(maxiter, gtol, gtol_relative, ftol, xtol)
    validate.integer("minimize: maxiter", maxiter, low=0)
    for name in ("gtol", "gtol_relative", "ftol", "xtol"):
        validate.number(f"minimize: {name}", getattr(limits, name), low=0.0)
    validate.flag("minimize: check_curvature", check_curvature)
    validate.flag("minimize: progress", progress)
    validate.integer("minimize: every", every, low=1)
    if max_seconds is not None:
        validate.number("minimize: max_seconds", max_seconds, low=0.0)
    if callback is not None:
        validate.function("minimize: callback", callback, "params, state and result")
    validate.numeric_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    validate.trainable_tree("params", params)
    box = None if bounds is None else as_box(bounds, params)
    if box is not None and optimizer is not None:
        raise ValueError(
            "minimize: bounds have a method of their own; optimizer must be None."
        )
    optimizer = _default_optimizer() if optimizer is None else optimizer
    validate.component(
        "optimizer", optimizer, optax.GradientTransformation, "newton_cg()"
    )
    arrays, constants = without_constants(data)
    settings = _Settings(value_fn, optimizer, check_curvature, constants)
    programs = from_cache(_programs, settings, value_fn)
    arguments = (params, limits, box, arrays)
    if callback is None and max_seconds is None and not progress:
        return programs.solve(*arguments)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments)):
        raise ValueError(
            "minimize: callback, max_seconds and progress need a call that is not "
            "traced: they run on the host, outside of jit, vmap and grad."
        )
    begin = time.perf_counter()
    end = steer(
        programs.start(*arguments),
        lambda loop, until: programs.advance(loop, until, *arguments[1:]),
        begin=begin,
        callback=callback,
        max_seconds=max_seconds,
        progress=progress,
        every=every,
    )
    return end.best.params, end.state, end.result()


@functools.cache
def _setting_names() -> tuple[str, ...]:
    """The names of the settings of :func:`minimize`."""
    names = tuple(inspect.signature(minimize).parameters)
    return names[2:-1]  # without value_fn, params and data


class _Settings(NamedTuple):
    """The arguments of :func:`minimize` that its programs depend on."""

    value_fn: Callable[..., Any]
    optimizer: optax.GradientTransformation
    check_curvature: bool
    constants: Constants


class _Programs(NamedTuple):
    """Compiled when they are first called."""

    solve: Callable[..., Any]  # the whole minimisation
    start: Callable[..., Any]  # its loop before the first update
    advance: Callable[..., Any]  # some updates


@functools.lru_cache(maxsize=CACHED_PROGRAMS)
def _programs(settings: _Settings) -> _Programs:
    def whole(arrays):
        return with_constants(arrays, settings.constants)

    def objective_of(arrays):
        return as_objective(settings.value_fn, whole(arrays))

    def problem(limits, box: Box | None, data):
        tx = settings.optimizer if box is None else projected_newton(box)
        return loops.Problem(
            value_fn=settings.value_fn,
            data=whole(data),
            objective=objective_of(data),
            optimizer=optax.with_extra_args_support(tx),
            limits=limits,
            box=box,
            check_curvature=settings.check_curvature,
        )

    def start(params, limits, box, data):
        params = params if box is None else box.project(params)
        return loops.start(problem(limits, box, data), params)

    def advance(loop, until, limits, box, data):
        return loops.advance(problem(limits, box, data), loop, until)

    def solve(params, limits, box, data):
        first = start(params, limits, box, data)
        end = loops.advance(problem(limits, box, data), first)
        return end.best.params, end.state, end.result()

    def logged(function):
        return LoggedJit("minimize", function)

    return _Programs(
        logged(differentiable(solve, objective_of)), logged(start), logged(advance)
    )
