"""Reads the infos of a run as NumPy arrays on the host, of shape=(steps,)."""

import collections.abc
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ncg_optax._utils import validate
from ncg_optax.step.info import NewtonCGInfo, find_infos

PyTree = Any


def read_infos(who: str, history: Any, last: int | None = None) -> NewtonCGInfo:
    """The infos of a run, oldest first, fetched in one transfer.

    Args:
      who: the calling function, for error messages.
      history: a :class:`NewtonCGInfo` or a state that contains one, of one step or
        stacked along a first axis, as ``lax.scan`` returns it; or a sequence of these.
      last: read only the first step and the last ``last`` steps; None for all.

    Returns:
      A :class:`NewtonCGInfo` of arrays of shape=(steps,), in their own dtypes.

    Raises:
      TypeError: if it is called under jit, where the numbers are not known, or if
        ``last`` is not an integer.
      ValueError: if there is nothing to read, a part of the history has no info or
        several, an info has more axes than one, or the devices disagree.
    """
    if last is not None:
        validate.integer(f"{who}: last", last, low=1)
    infos = _infos(who, history)
    if last is not None:  # Each info has at least one step.
        infos = infos[:1] + infos[1:][-last:]
    # All copies start before the first is waited for.
    copies = jax.device_get([[_copies(who, x) for x in info] for info in infos])
    parts = [NewtonCGInfo._make(_agreed(who, x) for x in info) for info in copies]
    for info in parts:
        if info.status.ndim > 1:
            raise ValueError(
                f"{who}: an info must be of one step or stacked along one axis, the "
                f"steps; got arrays of shape {info.status.shape}. Of several runs "
                "under jax.vmap pass one: jax.tree.map(lambda x: x[0], state)."
            )
    stacked = jax.tree.map(
        lambda *x: np.concatenate(list(map(np.atleast_1d, x))), *parts
    )
    if last is None:
        return stacked
    return jax.tree.map(lambda x: np.append(x[:1], x[1:][-last:]), stacked)


def read_info(who: str, state: PyTree) -> NewtonCGInfo:
    """The info of one step as NumPy scalars, fetched in one transfer.

    Args:
      who: the calling function, for error messages.
      state: a :class:`NewtonCGInfo`, or a state that contains one.

    Raises:
      TypeError: if it is called under jit.
      ValueError: if there is not exactly one step.
    """
    info = read_infos(who, state)
    if info.status.shape != (1,):
        raise ValueError(
            f"{who} takes the state or the info of one step, got {len(info.status)} "
            "steps. Of a stacked info take jax.tree.map(lambda x: x[-1], info); of a "
            "state replicated by pmap and fetched, likewise x[0]."
        )
    return jax.tree.map(lambda x: x[0], info)


def _infos(who: str, history: Any) -> list[NewtonCGInfo]:
    # A state may be a tuple too, such as that of optax.chain, but has one info.
    found = find_infos(history)
    if len(found) == 1:
        return found
    is_sequence = isinstance(history, collections.abc.Sequence)
    if not is_sequence or hasattr(history, "_fields"):
        raise ValueError(
            f"{who}: expected an optimizer state with one NewtonCGInfo, or a sequence "
            f"of such states; got {len(found)} of them in a {type(history).__name__}."
        )
    if len(history) == 0:
        raise ValueError(f"{who}: the history is empty: expected at least one step.")
    infos = list(map(find_infos, history))
    for i, (entry, found) in enumerate(zip(history, infos, strict=True)):
        if len(found) != 1:
            raise ValueError(
                f"{who}: entry {i} of the history, a {type(entry).__name__}, holds "
                f"{len(found)} NewtonCGInfo, expected one: the state of an optimizer "
                "made by newton_cg or hessian_free."
            )
    return [found[0] for found in infos]


def _copies(who: str, x: Any) -> list[Any]:
    """The array, or one array for each device if it is sharded."""
    if isinstance(x, Tracer):
        raise TypeError(
            f"{who} reads numbers, which are not known while a function is traced: "
            "call it outside of jit and scan, or through jax.debug.callback."
        )
    sharding = getattr(x, "sharding", None)
    if sharding is None or sharding.is_fully_replicated:
        return [x]
    return [shard.data for shard in x.addressable_shards]


def _agreed(who: str, copies: list[Any]) -> np.ndarray:
    """The value that all devices of this process have, without the axis of pmap."""
    first, *others = map(np.asarray, copies)
    if not others:
        return first
    same = all(np.array_equal(first, x, equal_nan=True) for x in others)
    if len(first) != 1 or not same:
        raise ValueError(
            f"{who}: the info is spread over {len(copies)} devices, which hold "
            "different values. Give axis_name= to the optimizer if they train one "
            "model; if each trains its own, pass one: "
            "jax.tree.map(lambda x: x[0], state)."
        )
    return first[0]
