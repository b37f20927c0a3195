"""The state of an optimizer between two steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.sampling import growth
from ncg_optax.step import mask as masks
from ncg_optax.step.info import NewtonCGInfo, first_info
from ncg_optax.step.settings import Settings

PyTree = Any


class ScaleByNewtonCGState(NamedTuple):
    """State of :func:`scale_by_newton_cg`.

    Attributes:
      count: updates done, int32, shape=().
      damping: state of the damping rule.
      solver: state of the solver (warm start, trust radius).
      preconditioner: state of the preconditioner.
      sample: a :class:`GrowthState` of the curvature's sample; () if it does not grow.
      info: a :class:`NewtonCGInfo` of the last update.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.scale_by_newton_cg().init(jnp.zeros(2))
      >>> print(state.count, state.solver)  # doctest: +ELLIPSIS
      0 CGState(...)
    """

    # A field called as a method of tuples, which nobody needs of a state.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    damping: Any
    solver: Any
    preconditioner: Any
    sample: Any
    info: NewtonCGInfo


def first_state(settings: Settings, params: PyTree) -> ScaleByNewtonCGState:
    """The state before the first step; ``params`` may be `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: if a trained leaf is not floating-point.
      ValueError: if there is nothing to train.
    """
    trained = masks.select(masks.resolve(settings.mask, params), params)
    # optax.tree.map_params calls init with a placeholder that has no leaves.
    containers = (dict, list, tuple, type(None))
    placeholder = not isinstance(params, containers)
    validate.trainable_tree("params", trained, empty_ok=placeholder)
    # No two leaves may share memory: a jitted step could not donate the state.
    return jax.tree.map(lambda x: jnp.array(x, copy=True), _first(settings, trained))


def _first(settings: Settings, trained: PyTree) -> ScaleByNewtonCGState:
    """The first state for the trained leaves."""
    dtype = pytree.scalar_dtype(trained)
    preconditioner = settings.preconditioner
    return ScaleByNewtonCGState(
        count=jnp.zeros((), jnp.int32),
        damping=settings.damping.init(dtype),
        solver=settings.solver.init(trained),
        preconditioner=() if preconditioner is None else preconditioner.init(trained),
        sample=growth.first_state(settings.grow_below, dtype),
        info=first_info(dtype),
    )


def require_own(state: Any, settings: Settings, trained: PyTree) -> None:
    """Raises unless ``state`` was made by ``init`` with these settings.

    Args:
      state: what ``update`` was given.
      settings: the parts.
      trained: the trained parameters.

    Raises:
      TypeError: if it is the state of another optimizer.
      ValueError: if it was made with other settings or for other parameters.
    """
    if not isinstance(state, ScaleByNewtonCGState):
        hint = ""
        if isinstance(state, tuple) and any(
            isinstance(part, ScaleByNewtonCGState) for part in state
        ):
            hint = " (this is the state of a chain: scale_by_newton_cg is one part)"
        elif isinstance(state, dict):
            hint = " (restored from a checkpoint without a target?)"
        raise TypeError(
            "newton_cg: state must be the ScaleByNewtonCGState that init or the last "
            f"update returned, got {_kind(state)}{hint}."
        )
    expected = jax.eval_shape(functools.partial(_first, settings), trained)
    for name in ("damping", "solver", "preconditioner", "sample"):
        ours, given = getattr(expected, name), getattr(state, name)
        if _shapes(ours) != _shapes(given):
            raise ValueError(
                f"newton_cg: state.{name} is not that of this optimizer and these "
                f"parameters: got {_describe(given)}, expected {_describe(ours)}. Was "
                "it made by another preset, with other settings, or for other "
                "parameters?"
            )


def _kind(x: Any) -> str:
    """The type, and those of the parts of a tuple."""
    if type(x) is tuple:
        return f"a tuple of {', '.join(type(part).__name__ for part in x) or 'nothing'}"
    return type(x).__name__


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


def _describe(tree: PyTree) -> str:
    shapes = _shapes(tree)
    shown = ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")
    return f"{_kind(tree)} with arrays of shapes [{shown}]"
