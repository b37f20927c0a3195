"""Reductions over mapped axes that are correct under every mapping.

A loss may be *local* (the mean over one device's share of the batch), or the user may
have averaged it over the devices with ``pmean``. The axis may come from `jax.pmap`,
from `jax.shard_map` with or without ``check_vma``, or from ``jax.vmap(axis_name=...)``.
The reduction that a derivative still needs depends on both: under a checked
``shard_map`` JAX itself sums the gradient of a local loss with respect to replicated
parameters; under the other mappings it does not.

The functions here make the parameters *varying* over the axes, differentiate, and read
the type of the loss. Over an axis where the loss varies, or where types do not show
it, a derivative needs a ``pmean``. Over an axis where the loss is invariant the user
has averaged it, and a derivative needs a ``psum``. `jax.lax.pcast` shows the type
without private attributes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate

Axes = tuple[str, ...]


def as_axes(axis_name: Any) -> Axes:
    """``axis_name`` (None, a name, or several) as a tuple of names.

    Raises:
      TypeError: if a name is not a string.
    """
    if axis_name is None:
        return ()
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                "axis_name must be the name of a mapped axis, a tuple of names, or "
                f"None; got {axis_name!r} of type {type(axis_name).__name__}."
            )
    return names


def _cast(x: jax.Array, axis: str) -> tuple[jax.Array, bool]:
    """``x`` typed as varying over ``axis``, and whether the cast was accepted."""
    try:
        return jax.lax.pcast(x, axis, to="varying"), True
    except (ValueError, AssertionError):  # varies already, or the axis is from vmap
        return x, False


def _is_checked(axis: str) -> bool:
    """Whether types track variation over ``axis`` (shard_map with check_vma)."""
    zero, accepted = _cast(jnp.zeros(()), axis)
    # An unchecked mapping accepts every cast, also of a value that varies already.
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
    """Mean over ``axes``; a leaf that is the same on all devices does not change.

    The axes are reduced one after the other: a leaf may vary over some of them and be
    invariant over others, and `jax.lax.pmean` refuses this for a tuple of axes. Leaves
    that are invariant by type are skipped; `jax.lax.pmean` would communicate them.
    """
    for axis in axes:
        tree = _mean_of_some(tree, axis, functools.partial(_may_vary, axis=axis))
    return tree


def _may_vary(x: Any, axis: str) -> bool:
    """False if the type of ``x`` shows that it is the same over ``axis``."""
    return not (_is_checked(axis) and _cast(jnp.asarray(x), axis)[1])


def _mean_of_some(tree: Any, axis: str, chosen: Callable[[Any], bool]) -> Any:
    """``tree`` with the chosen leaves averaged, by one all-reduce for all of them."""
    leaves, treedef = jax.tree.flatten(tree)
    flags = [chosen(x) for x in leaves]
    some = [x for x, flag in zip(leaves, flags, strict=True) if flag]
    means = iter(jax.lax.pmean(some, axis))
    return treedef.unflatten(
        next(means) if flag else x for x, flag in zip(leaves, flags, strict=True)
    )


def mean_or_first(tree: Any, axis: str) -> Any:
    """The mean over the devices; for integers and random keys, the first device's."""

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


def index(axes: Axes) -> jax.Array | int:
    """The number of this device over ``axes``, in the order of :func:`gather`."""
    number, stride = 0, 1
    for axis in axes:
        number = number + stride * jax.lax.axis_index(axis)
        stride *= jax.lax.axis_size(axis)
    return number


def total(tree: Any, axes: Axes) -> Any:
    """Sum over ``axes`` of leaves that differ between the devices."""
    return jax.lax.psum(tree, axes) if axes else tree


def gather(tree: Any, axes: Axes) -> Any:
    """The rows of all devices, concatenated; the result is the same on all devices."""
    for axis in axes:
        # A checked shard_map has to be told that the result is the same everywhere.
        # The other mappings do not accept this.
        to = "invarying" if _is_checked(axis) else "varying"
        tree = jax.lax.all_gather(tree, axis, tiled=True, to=to)
    return tree


def same_on_all_devices(tree: Any, axes: Axes) -> Any:
    """``tree``, whose leaves are the same on all devices, with averaged derivatives.

    For a loss that is averaged over ``axes``. If types do not show variation, JAX
    differentiates such a loss on each device with respect to the parameters of that
    device only: the gradients are those of the local losses. With the parameters passed
    through this function they are the mean of these, which is the gradient of the
    averaged loss, and the same on all devices.
    """
    leaves, treedef = jax.tree.flatten(tree)
    flags = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]

    @jax.custom_jvp
    def identity(values):
        return values

    @identity.defjvp
    def _(primals, tangents):
        return primals[0], mean(tangents[0], axes)

    some = [x for x, flag in zip(leaves, flags, strict=True) if flag]
    passed = iter(identity(some))
    return treedef.unflatten(
        next(passed) if flag else x for x, flag in zip(leaves, flags, strict=True)
    )


def derivative_reducer(value: jax.Array, axes: Axes) -> Callable[[Any], Any]:
    """The reduction that a derivative of ``value`` still needs.

    Args:
      value: the loss, shape=(), computed from parameters that are varying over
        ``axes`` (see :func:`to_varying`).
      axes: names of the mapped axes.

    Returns:
      A function from a derivative on one device (a gradient or a curvature product)
      to that of the loss over all devices, which is the same on all of them.
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
    """Whether ``value`` is the sum, instead of the mean, of the losses of all devices.

    This happens to a user who writes ``lax.psum`` instead of ``lax.pmean``, or who
    mistakes the automatic sum of a checked `jax.shard_map` for a mean. Then ``value``
    and the gradient are those of ``value_fn`` times the number of devices.

    Args:
      value: the loss as the user passed it; None if it was not passed.
      mean_loss: the mean over devices of ``value_fn``, shape=().
      axes: names of the mapped axes.
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
    r"""`jax.value_and_grad`, reduced correctly under every mapping.

    Under a checked `jax.shard_map`, ``lax.pmean(jax.grad(local_loss)(params))`` is the
    gradient *times the number of devices*: JAX has already summed it, and ``pmean``
    does not change an invariant value. This function returns the value and the gradient
    of the loss over all devices under every mapping. ``value_fn`` may return the mean
    over the local share of the batch, or average it over ``axis_name`` itself. Without
    ``axis_name`` this is `jax.value_and_grad`.

    Args:
      value_fn: ``value_fn(params, *args, **kwargs)``; returns a scalar loss, or
        ``(loss, aux)`` with ``has_aux``. The loss is a mean over examples, not a sum.
      axis_name: mapped axis name(s) of pmap, shard_map or vmap.
      has_aux: whether ``value_fn`` returns ``(loss, aux)``. The aux is not reduced:
        each device returns its own.

    Returns:
      A function with the arguments of ``value_fn`` that returns ``(value, grad)``, or
      ``((value, aux), grad)``. Value and gradient are the same on all devices.

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
    validate.function("value_and_grad: value_fn", value_fn)
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
    """The product with the curvature of the loss over all devices.

    A product needs one all-reduce of one vector the size of the parameters.

    Args:
      value: the loss of one device, as for :func:`derivative_reducer`.
      matvec: the product with the curvature on one device.
      axes: names of the mapped axes.
      sent_as: dtype of real leaves during the all-reduce; None keeps their dtypes. The
        result has the dtypes of ``matvec``.
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
