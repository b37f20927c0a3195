"""Reductions over mapped axes that are right under every mapping.

A loss may be *local* (the mean over one device's share of the batch) or already
``pmean``'ed by the user, and the axis may come from `jax.pmap`, `jax.shard_map` with
``check_vma`` on or off, or ``jax.vmap(axis_name=...)``. Who has to reduce a derivative
depends on all of that: under a checked ``shard_map`` the gradient of a local loss with
respect to replicated parameters is summed by JAX itself, elsewhere it is not.

The way out: make the parameters *varying* over the axes, differentiate there, and look
at the type of the loss value. Over an axis where the value still varies (or where
nothing is typed) a derivative needs a ``pmean``; over an axis where the value came out
invariant the user has reduced the loss already, and the derivative needs a ``psum``.
Everything is read off `jax.lax.pcast`, without private attributes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Axes = tuple[str, ...]


def as_axes(axis_name: Any) -> Axes:
    """``axis_name`` (None, a name, or several) as a tuple of names."""
    if axis_name is None:
        return ()
    if isinstance(axis_name, (tuple, list)):
        return tuple(axis_name)
    return (axis_name,)


def _cast(x: jax.Array, axis: str) -> tuple[jax.Array, bool]:
    """``x`` typed as varying over ``axis``, and whether the cast was accepted."""
    try:
        return jax.lax.pcast(x, axis, to="varying"), True
    except (ValueError, AssertionError):  # varying already, or an axis of vmap
        return x, False


def _is_checked(axis: str) -> bool:
    """Whether types track variation over ``axis`` (shard_map with check_vma)."""
    zero, accepted = _cast(jnp.zeros(()), axis)
    # Unchecked mappings accept any cast, even of a value that varies already.
    return accepted and not _cast(zero, axis)[1]


def _already_reduced(value: jax.Array, axes: Axes) -> Axes:
    """The axes over which ``value`` is invariant although it could vary."""
    return tuple(a for a in axes if _is_checked(a) and _cast(value, a)[1])


def to_varying(tree: Any, axes: Axes) -> Any:
    """``tree`` with every leaf typed as varying over ``axes``."""
    for axis in axes:
        tree = jax.tree.map(lambda x, axis=axis: _cast(x, axis)[0], tree)
    return tree


def mean(tree: Any, axes: Axes) -> Any:
    """Mean over ``axes``; the identity on what is the same everywhere.

    One axis at a time: a value may vary over some axes and be invariant over others,
    which `jax.lax.pmean` refuses for a tuple of axes. What the types show to be
    invariant is left alone, where `jax.lax.pmean` would send it around again.
    """
    for axis in axes:
        tree = _mean_of_some(tree, axis, functools.partial(_may_vary, axis=axis))
    return tree


def _may_vary(x: Any, axis: str) -> bool:
    """Whether nothing shows that ``x`` is the same over ``axis``."""
    return not (_is_checked(axis) and _cast(jnp.asarray(x), axis)[1])


def _mean_of_some(tree: Any, axis: str, chosen: Callable[[Any], bool]) -> Any:
    """The chosen leaves averaged, in one call: XLA makes one all-reduce of it."""
    leaves, treedef = jax.tree.flatten(tree)
    flags = [chosen(x) for x in leaves]
    some = [x for x, flag in zip(leaves, flags, strict=True) if flag]
    means = iter(jax.lax.pmean(some, axis))
    return treedef.unflatten(
        next(means) if flag else x for x, flag in zip(leaves, flags, strict=True)
    )


def mean_or_first(tree: Any, axis: str) -> Any:
    """The mean over the devices; of integers and random keys, those of the first."""

    def inexact(x):
        return jnp.issubdtype(jnp.result_type(x), jnp.inexact)

    def of_first_device(x):
        if inexact(x):
            return x
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            data = of_first_device(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.lax.all_gather(x, axis)[0]

    return jax.tree.map(of_first_device, _mean_of_some(tree, axis, inexact))


def size(axes: Axes) -> int:
    """Number of devices over ``axes``."""
    return math.prod(jax.lax.axis_size(axis) for axis in axes)


def total(tree: Any, axes: Axes) -> Any:
    """Sum over ``axes`` of what differs from device to device."""
    return jax.lax.psum(tree, axes) if axes else tree


def gather(tree: Any, axes: Axes) -> Any:
    """The rows of all devices one below the other, the same everywhere."""
    for axis in axes:
        # Only a checked shard_map can, and must, be told that they are the same.
        to = "invarying" if _is_checked(axis) else "varying"
        tree = jax.lax.all_gather(tree, axis, tiled=True, to=to)
    return tree


def derivative_reducer(value: jax.Array, axes: Axes) -> Callable[[Any], Any]:
    """The reduction that a derivative of ``value`` still needs.

    Args:
      value: the loss, shape=(), computed from parameters that are varying over
        ``axes`` (see :func:`to_varying`).
      axes: names of the mapped axes.

    Returns:
      A function that maps derivatives taken on each device (gradients, curvature
      products) to those of the loss over all devices, replicated.
    """
    summed = _already_reduced(value, axes)
    averaged = tuple(a for a in axes if a not in summed)

    def reduce(tree):
        tree = jax.lax.pmean(tree, averaged) if averaged else tree
        return jax.lax.psum(tree, summed) if summed else tree

    return reduce


def reduced_axes_size(value: jax.Array, axes: Axes) -> int | jax.Array:
    """Number of devices over which the user has averaged ``value`` already."""
    size = 1
    for axis in _already_reduced(value, axes):
        size = size * jax.lax.axis_size(axis)
    return size


def is_sum_of(value: jax.Array | None, mean_loss: jax.Array, axes: Axes) -> jax.Array:
    """Whether ``value`` is the sum over devices of what ``mean_loss`` is the mean of.

    Whoever writes ``lax.psum`` for ``lax.pmean``, or takes the automatic sum of a
    checked `jax.shard_map` for a mean, passes value and gradient that do not belong to
    ``value_fn``: too large by the number of devices.
    """
    devices = size(axes)
    if value is None or devices == 1:
        return jnp.asarray(False)
    passed = jnp.asarray(mean(value, axes))
    off = jnp.abs(passed - devices * mean_loss)
    return (mean_loss != 0) & (off <= 1e-3 * jnp.abs(passed))


def value_and_grad(
    value_fn: Callable[..., Any],
    axis_name: str | tuple[str, ...] | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""`jax.value_and_grad`, reduced rightly under every mapping.

    Under a checked `jax.shard_map`, ``lax.pmean(jax.grad(local_loss)(params))`` is the
    true gradient *times the number of devices*: JAX has summed it before, and the
    ``pmean`` of an invariant value is the identity. This function returns the value
    and gradient of the loss over all devices in every mode, whether ``value_fn``
    returns the mean over the local share of the batch or has averaged it over
    ``axis_name`` itself. Without ``axis_name`` it is `jax.value_and_grad`.

    Args:
      value_fn: ``value_fn(params, *args, **kwargs)``, a scalar loss, or
        ``(loss, aux)`` with ``has_aux``. A mean over examples, not a sum.
      axis_name: mapped axis name(s) of pmap, shard_map or vmap.
      has_aux: whether ``value_fn`` returns ``(loss, aux)``. The aux is returned as
        each device computed it, not reduced.

    Returns:
      A function with the arguments of ``value_fn`` that returns ``(value, grad)``, or
      ``((value, aux), grad)``. Value and gradient are replicated over ``axis_name``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> def loss(w, x):
      ...     return jnp.mean((x * w - 1.0) ** 2)
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])  # two devices, two examples each
      >>> step = ncg.value_and_grad(loss, axis_name="data")
      >>> value, grad = jax.vmap(step, (None, 0), axis_name="data")(1.0, x)
      >>> print(value, jax.value_and_grad(loss)(1.0, x)[0])
      [3.5 3.5] 3.5
    """
    axes = as_axes(axis_name)
    differentiate = jax.value_and_grad(value_fn, has_aux=has_aux)

    def reduced(params, *args, **kwargs):
        out, grad = differentiate(to_varying(params, axes), *args, **kwargs)
        value = out[0] if has_aux else out
        reduce = derivative_reducer(value, axes)
        value = mean(value, axes)
        return (value, out[1]) if has_aux else value, reduce(grad)

    return reduced


def reduced_operator(
    value: jax.Array,
    matvec: Callable[[Any], Any],
    axes: Axes,
    sent_as: Any = None,
) -> Callable[[Any], Any]:
    """``matvec`` of one device's curvature as that of the loss over all devices.

    One all-reduce per product, of one vector the size of the parameters, of the dtype
    ``sent_as`` if that is given (complex leaves keep theirs). The result has that of
    ``matvec`` again.
    """
    if not axes:
        return matvec
    reduce = derivative_reducer(value, axes)

    def product(v):
        local = matvec(to_varying(v, axes))
        if sent_as is None:
            return reduce(local)
        narrow = lambda x: x if jnp.iscomplexobj(x) else x.astype(sent_as)  # noqa: E731
        sent = reduce(jax.tree.map(narrow, local))
        return jax.tree.map(lambda x, y: x.astype(y.dtype), sent, local)

    return product
