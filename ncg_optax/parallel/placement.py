"""Places parameters and batches on the devices of a mesh, of one or many processes."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any


def data_mesh(axis_name: str = "data") -> Mesh:
    """The mesh of all devices of all processes along one axis.

    Args:
      axis_name: the name of the axis.

    Returns:
      A `jax.sharding.Mesh` of shape (`jax.device_count()`,).

    Examples:
      >>> from ncg_optax import parallel
      >>> parallel.data_mesh().axis_names
      ('data',)
    """
    return jax.make_mesh((jax.device_count(),), (axis_name,), (AxisType.Auto,))


def automatic_mesh(mesh: Any, axis_name: Any, who: str) -> Mesh:
    """``mesh`` with axes of type Auto, which `jax.shard_map` needs.

    (The axes of `jax.make_mesh` are of type Explicit by default.)

    Raises:
      TypeError: if it is not a mesh.
      ValueError: if it has no axis of this name.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{who}: mesh must be a jax.sharding.Mesh, got {mesh!r} of type "
            f"{type(mesh).__name__}."
        )
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"{who}: axis_name must be an axis of the mesh, got {axis_name!r}; the "
            f"mesh has {', '.join(map(repr, mesh.axis_names))}."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def is_traced(x: Any) -> bool:
    """Whether ``x`` is an argument of a function that is being traced."""
    return isinstance(x, Tracer)


def _is_placed(x: Any, mesh: Mesh) -> bool:
    """Whether ``x`` is on ``mesh`` already, or will be (a tracer)."""
    sharding = None if is_traced(x) else getattr(x, "sharding", None)
    # With another kind of sharding on the same devices the step is compiled again.
    return is_traced(x) or (
        isinstance(sharding, NamedSharding) and sharding.mesh == mesh
    )


def _spec(x: Any, mesh: Mesh) -> P:
    """How ``x`` is sharded over the axes of ``mesh`` now."""
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.shape == mesh.shape:
        return sharding.spec
    return P()


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """``tree`` on all devices of ``mesh``; leaves sharded over it stay sharded.

    With several processes each of them must pass the same values, which is checked.

    Args:
      tree: a pytree of arrays or numbers.
      mesh: a `jax.sharding.Mesh`.

    Returns:
      The tree with leaves of type `jax.Array`.

    Raises:
      ValueError: on every process, if the processes pass different values, shapes,
        dtypes or structures.

    Examples:
      >>> from ncg_optax import parallel
      >>> params = parallel.replicate({"w": 1.0}, parallel.data_mesh())
      >>> params["w"].sharding.is_fully_replicated
      True
    """
    if jax.process_count() > 1:
        elsewhere = [x for x in jax.tree.leaves(tree) if not _is_placed(x, mesh)]
        require_agreement("replicate: the values", elsewhere)
    return place(tree, mesh)


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Like :func:`replicate`, without the comparison with other processes."""
    leaves, treedef = jax.tree.flatten(tree)
    elsewhere = [x for x in leaves if not _is_placed(x, mesh)]
    if not elsewhere:
        return tree
    # Copies, so that a step may donate them and the caller keeps the arrays.
    copies = [jnp.array(x, copy=True) for x in elsewhere]
    shardings = [NamedSharding(mesh, _spec(x, mesh)) for x in elsewhere]
    moved = iter(jax.device_put(copies, shardings))
    return treedef.unflatten(x if _is_placed(x, mesh) else next(moved) for x in leaves)


def check_rows(batch: PyTree, parts: int, axis_name: str, who: str) -> None:
    """Checks that ``parts`` devices can share the first axis of every leaf equally.

    Raises:
      ValueError: if they cannot, or if a leaf has no axis over the examples.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        shape = np.shape(x) if not hasattr(x, "shape") else x.shape
        name = f"batch{jax.tree_util.keystr(path)}"
        if not shape or _is_random_key(x):
            raise ValueError(
                f"{who}: {name} has no axis over the examples (shape {shape}): pass "
                "data that is the same on all devices as a keyword argument of the "
                "step."
            )
        if shape[0] % parts:
            raise ValueError(
                f"{who}: {name} has {shape[0]} rows, which the {parts} devices of mesh "
                f"axis {axis_name!r} cannot share equally: expected a multiple of "
                f"{parts}. Drop the last {shape[0] % parts} rows or choose another "
                "batch size."
            )


def shard_batch(batch: PyTree, mesh: Mesh, axis_name: str = "data") -> PyTree:
    """``batch`` with its rows distributed over one axis of ``mesh``.

    With several processes each of them passes its own rows, the same number on each;
    the rows of all together are the batch. Global arrays are returned unchanged.

    Args:
      batch: a pytree of arrays whose first axis runs over the examples.
      mesh: a `jax.sharding.Mesh`.
      axis_name: the axis of the mesh over which the rows are distributed.

    Returns:
      The batch with leaves of type `jax.Array`.

    Raises:
      ValueError: if the devices cannot share the rows equally.

    Examples:
      >>> import numpy as np
      >>> from ncg_optax import parallel
      >>> batch = {"x": np.ones((8, 3)), "y": np.ones(8)}
      >>> parallel.shard_batch(batch, parallel.data_mesh())["x"].shape
      (8, 3)
    """
    mesh = automatic_mesh(mesh, axis_name, "shard_batch")
    sharding = NamedSharding(mesh, P(axis_name))
    elsewhere = jax.tree.map(
        lambda x: None if _is_placed(x, mesh) else x, batch, is_leaf=lambda x: x is None
    )
    check_rows(elsewhere, mesh.local_mesh.shape[axis_name], axis_name, "shard_batch")

    def place_leaf(x):
        if _is_placed(x, mesh):
            return x
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place_leaf, batch)


def _is_random_key(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)


def _digest(parts: Iterator[str | bytes]) -> np.ndarray:
    """The SHA-256 of bytes and strings, uint32, shape=(8,)."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else str(part).encode())
    return np.frombuffer(sha.digest(), np.uint32)


def _contents(tree: PyTree) -> Iterator[str | bytes]:
    """The structure of a tree, and shape, dtype and bytes of each leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    yield str(treedef)
    for x in leaves:
        if _is_random_key(x):
            x = jax.random.key_data(x)
        x = np.asarray(x)
        yield f"{x.shape}{x.dtype}"
        yield x.tobytes()


def require_agreement(what: str, tree: PyTree) -> None:
    """Raises on every process if the processes hold different trees.

    Processes with another seed, batch size or learning rate run different programs,
    which wait for each other for ever. Hashes of a fixed size are compared, so that
    differences in shape are found as well.

    Args:
      what: the name of what is compared, for the error message.
      tree: a pytree of arrays, numbers and strings that every process can read.

    Raises:
      ValueError: naming the processes that differ from process 0.

    Examples:
      >>> from ncg_optax import parallel
      >>> parallel.require_agreement("the settings", {"seed": 0})
    """
    if jax.process_count() == 1:
        return
    # Imported only here, because the import is slow.
    from jax.experimental import multihost_utils

    digests = np.asarray(multihost_utils.process_allgather(_digest(_contents(tree))))
    different = np.flatnonzero(np.any(digests != digests[0], axis=1))
    if different.size:
        raise ValueError(
            f"{what} must be the same on all processes, but process(es) "
            f"{', '.join(map(str, different))} differ from process 0."
        )
