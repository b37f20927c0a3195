"""The state of the optimizer between two steps."""

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
      count: number of updates done, int32, shape=().
      damping: state of the damping rule.
      solver: state of the solver (warm start, trust radius).
      preconditioner: state of the preconditioner.
      sample: a :class:`GrowthState`; () without ``grow_below`` of :func:`sampling`.
      info: the :class:`NewtonCGInfo` of the last update.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.scale_by_newton_cg().init(jnp.zeros(2))
      >>> print(state.count, state.solver)  # doctest: +ELLIPSIS
      0 CGState(...)
    """

    # Tuples have a method of this name; the field hides it.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    damping: Any
    solver: Any
    preconditioner: Any
    sample: Any
    info: NewtonCGInfo


def first_state(settings: Settings, params: PyTree) -> ScaleByNewtonCGState:
    """The state before the first step; ``params`` may be `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: if a trained leaf is not floating-point or complex.
      ValueError: if no leaf is trained.
    """
    trained = masks.select(masks.resolve(settings.mask, params), params)
    # optax.tree.map_params calls init with a placeholder that has no leaves.
    containers = (dict, list, tuple, type(None))
    placeholder = not isinstance(params, containers)
    validate.trainable_tree("params", trained, empty_ok=placeholder)
    # Each leaf needs its own memory, so that a jitted step can donate the state.
    return jax.tree.map(lambda x: jnp.array(x, copy=True), _first(settings, trained))


def _first(settings: Settings, trained: PyTree) -> ScaleByNewtonCGState:
    """The state before the first step, for the trained leaves."""
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
      state: the state given to ``update``.
      settings: the settings of the optimizer.
      trained: the trained parameters.

    Raises:
      TypeError: if ``state`` is that of another optimizer.
      ValueError: if ``state`` was made with other settings or for other parameters.
    """
    hint = ""
    if isinstance(state, dict):
        hint = " (was it restored from a checkpoint without a target?)"
    elif isinstance(state, tuple) and any(
        isinstance(part, ScaleByNewtonCGState) for part in state
    ):
        hint = " (this is the state of a chain: scale_by_newton_cg is one part)"
    validate.state("newton_cg", state, ScaleByNewtonCGState, hint)
    expected = jax.eval_shape(functools.partial(_first, settings), trained)
    for name in ScaleByNewtonCGState._fields:
        ours, given = getattr(expected, name), getattr(state, name)
        if _is_other(given, ours):
            got, wanted = _describe_both(given, ours)
            raise ValueError(
                f"newton_cg: state.{name} does not fit this optimizer and these "
                f"parameters: got {got}, expected {wanted}. Was it made by another "
                "preset, with other settings, or for other parameters?"
            )


def require_same_structure(
    settings: Settings, new: ScaleByNewtonCGState, old: ScaleByNewtonCGState
) -> None:
    """Raises if a part has changed the structure or the shapes of its state.

    The part may be a class of the user.

    Raises:
      TypeError: if the new state has other leaves than the old one.
    """
    for name in ("damping", "solver", "preconditioner"):
        state, before = getattr(new, name), getattr(old, name)
        if _is_other(state, before):
            got, wanted = _describe_both(state, before)
            raise TypeError(
                f"{getattr(settings, name)!r}: the state must keep the structure and "
                f"the shapes that init gives it: got {got}, expected {wanted}."
            )


def _is_other(tree: PyTree, expected: PyTree) -> bool:
    """Whether the structures or the shapes differ."""
    same_structure = jax.tree.structure(tree) == jax.tree.structure(expected)
    return not same_structure or _shapes(tree) != _shapes(expected)


def _shapes(tree: PyTree) -> list[str]:
    """Path and shape of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(p)} {jnp.shape(x)}".strip() for p, x in leaves]


def _describe_both(tree: PyTree, other: PyTree) -> tuple[str, str]:
    """The types of two trees, and the leaves of each that the other does not have."""
    return _describe(tree, other), _describe(other, tree)


def _describe(tree: PyTree, other: PyTree) -> str:
    """The type of ``tree``, and up to four leaves that ``other`` does not have."""
    elsewhere = set(_shapes(other))
    own = [shape for shape in _shapes(tree) if shape not in elsewhere]
    shown = ", ".join(own[:4]) + (", ..." if len(own) > 4 else "")
    return validate.type_name(tree) + (f" with {shown}" if own else "")
