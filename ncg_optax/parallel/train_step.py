"""Data-parallel training: one jitted step on any number of devices and processes.

The batch is split over one axis of a mesh, the parameters are the same on all of its
devices (and may be sharded over the other axes). Each device computes loss, gradient
and curvature products of its own share; what is averaged over the devices is one
vector of the size of the parameters for the gradient (with the loss), one for each
curvature product, and a number for each trial value. Everything else, conjugate
gradients included, every device does for itself, with the same numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax.curvature.sampling import microbatches as _microbatches
from ncg_optax.losses.arguments import data_names
from ncg_optax.losses.objective import MappedLoss, as_objective, bind_constants
from ncg_optax.parallel.placement import automatic_mesh, check_rows, is_traced, placed
from ncg_optax.parallel.placement import data_mesh as data_mesh
from ncg_optax.parallel.placement import replicate as replicate
from ncg_optax.parallel.placement import require_agreement as require_agreement
from ncg_optax.parallel.placement import shard_batch as shard_batch
from ncg_optax.step import info as _info

PyTree = Any


class StepMetrics(NamedTuple):
    """What a step of :func:`make_train_step` reports, the same on every device.

    Attributes:
      loss: over the whole batch, at the parameters before the step, shape=().
      aux: of ``value_fn``, with ``has_aux``; None otherwise. Floating-point numbers
        are averaged over the devices; of anything else, that of the first device.
      info: the :class:`ncg_optax.step.NewtonCGInfo` of the step; None if the optimizer's
        state has none, as that of ``optax.adam``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> tx = optax.sgd(0.1)
      >>> step = ncg.make_train_step(lambda w, x: jnp.mean((x * w - 1.0) ** 2), tx)
      >>> w = jnp.zeros(())
      >>> w, state, metrics = step(w, tx.init(w), {"x": jnp.ones(4)})
      >>> print(metrics.loss, metrics.aux, metrics.info)
      1.0 None None
    """

    loss: jax.Array
    aux: PyTree
    info: _info.NewtonCGInfo | None


class TrainStep:
    """The jitted step that :func:`make_train_step` returns; call it.

    Attributes:
      mesh: the mesh it runs on.
      axis_name: the mesh's axis that the batch is spread over.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> tx = optax.sgd(0.1)
      >>> step = ncg.make_train_step(lambda w, x: jnp.mean((x * w - 1.0) ** 2), tx)
      >>> step.axis_name, step.mesh.axis_names
      ('data', ('data',))
      >>> w = jnp.zeros(())
      >>> program = step.lower(w, tx.init(w), {"x": jnp.ones(4)}).compile()
    """

    def __init__(self, step: Callable, mesh: Mesh, axis_name: str, donate: bool):
        self.mesh = mesh
        self.axis_name = axis_name
        self._jitted = jax.jit(step, donate_argnums=(0, 1) if donate else ())
        self._shapes = None

    def _placed(self, params, state, batch, extra):
        """All arguments where they belong."""
        # The values are compared once: later ones come out of the steps, and whatever
        # else is passed (a random key) should not make the processes wait.
        place = replicate if self._shapes is None else placed
        params, state, extra = place((params, state, extra), self.mesh)
        batch = shard_batch(batch, self.mesh, self.axis_name)
        parts = self.mesh.shape[self.axis_name]
        check_rows(batch, parts, self.axis_name, "make_train_step")
        return params, state, batch, extra

    def _check_processes(self, arguments):
        """Whether all processes run the same program, before they run it."""
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), arguments)
        if shapes == self._shapes:
            return
        if self._shapes is not None:
            # Asking the others would wait for ever if they go on with the step.
            raise ValueError(
                "make_train_step: with several processes the shapes must stay the "
                f"same from step to step; got batch {shapes[2]}, expected "
                f"{self._shapes[2]}."
            )
        program = self._jitted.lower(*arguments).as_text()
        require_agreement(
            "make_train_step: the program (shapes, settings, seeds)", [program]
        )
        self._shapes = shapes

    def __call__(
        self, params: PyTree, state: PyTree, batch: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree, StepMetrics]:
        """One step: the new parameters and state, and what was measured."""
        arguments = self._placed(params, state, batch, extra)
        traced = any(map(is_traced, jax.tree.leaves(arguments)))
        if jax.process_count() > 1 and not traced:
            self._check_processes(arguments)
        return self._jitted(*arguments)

    def lower(
        self, params: PyTree, state: PyTree, batch: PyTree, **extra: Any
    ) -> jax.stages.Lowered:
        """The step for such arguments, for its HLO, cost or memory analysis."""
        return self._jitted.lower(*self._placed(params, state, batch, extra))


def _by_name(value_fn: Callable, batch: PyTree) -> Mapping[str, PyTree]:
    """The batch as keyword arguments of ``value_fn``: spread, or as its first one."""
    names, takes_any = data_names(value_fn)
    if isinstance(batch, Mapping) and (takes_any or set(names) & set(batch)):
        return batch
    return {names[0] if names else "batch": batch}


def make_train_step(
    value_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    has_aux: bool = False,
    *,
    microbatch_size: int | None = None,
    product_dtype: Any = None,
    donate: bool = True,
) -> TrainStep:
    r"""One jitted step of training, on one device, on many, on many processes.

    .. math::
      \theta \leftarrow \theta + \mathrm{tx}\Big(\frac1n \sum_{d=1}^n \nabla f_d\Big),
      \qquad B v = \frac1n \sum_{d=1}^n B_d v

    with :math:`f_d` the loss on the share of device :math:`d`. The result is that of
    one device with the whole batch. The optimizer needs no ``axis_name``: the loss
    that it is handed knows its axes. Any optax optimizer will do.

    Args:
      value_fn: the loss, the *mean* over the examples: a plain function or a
        :class:`ncg_optax.CompositeLoss`. A batch that is a dictionary of its arguments
        arrives as ``value_fn(params, **batch)``, any other as
        ``value_fn(params, batch)``.
      tx: the optimizer, such as ``ncg_optax.hessian_free()``.
      mesh: a `jax.sharding.Mesh`; None for :func:`data_mesh`. Parameters and state
        may be sharded over its other axes and keep their sharding.
      axis_name: the axis of the mesh that the batch is spread over.
      has_aux: whether ``value_fn`` returns ``(loss, aux)``.
      microbatch_size: examples of a device at a time in the gradient, to bound its
        memory; the products have ``sampling(microbatch_size=...)`` of their own.
      product_dtype: what curvature products are sent around in, ``jnp.bfloat16`` to
        halve the traffic; None for the dtype of the parameters. Inner products
        accumulate in float32 in any case.
      donate: whether to reuse the memory of the parameters and state passed in, which
        are gone after the step. Not of what had to be moved to the mesh first.

    Returns:
      A function ``step(params, state, batch, **extra) -> (params, state, metrics)``,
      see :class:`StepMetrics`. The leaves of ``batch`` have the examples along their
      first axis; with several processes each passes its own rows (see
      :func:`shard_batch`). ``extra`` reaches ``value_fn`` by name as well, the same
      on all devices: a random key, batch statistics. ``step.lower(...)`` gives the
      compiled program to look at.

    Raises:
      TypeError: if an argument is not what its name says.
      ValueError: if the mesh lacks the axis; in the step, if the devices cannot share
        the batch equally, or if processes run different programs.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w, x: x @ w, lambda outputs, y: jnp.mean((outputs - y) ** 2)
      ... )
      >>> tx = ncg.newton_cg(curvature=ncg.gauss_newton(), damping=0.0)
      >>> step = ncg.make_train_step(loss, tx)
      >>> w = jnp.zeros(2)
      >>> batch = {"x": jnp.eye(2), "y": jnp.array([1.0, 2.0])}
      >>> w, state, metrics = step(w, tx.init(w), batch)
      >>> print(w, metrics.loss)
      [1. 2.] 2.5
    """
    who = "make_train_step"
    if not callable(value_fn):
        raise TypeError(
            f"{who}: value_fn must be a function of the parameters, got {value_fn!r} "
            f"of type {type(value_fn).__name__}."
        )
    validate.component(f"{who}: tx", tx, optax.GradientTransformation, "hessian_free()")
    if microbatch_size is not None:
        validate.integer(f"{who}: microbatch_size", microbatch_size, low=1)
    if product_dtype is not None and not jnp.issubdtype(product_dtype, jnp.floating):
        raise TypeError(
            f"{who}: product_dtype must be a floating-point dtype such as "
            f"jnp.bfloat16, or None; got {product_dtype!r}."
        )
    mesh = data_mesh(axis_name) if mesh is None else mesh
    mesh = automatic_mesh(mesh, axis_name, who)
    tx = optax.with_extra_args_support(tx)
    axes = (axis_name,)

    def local_step(params, state, batch, extra):
        # What is no part of the batch must not be cut where the batch is.
        loss = bind_constants(value_fn, extra)
        objective = as_objective(loss, _by_name(loss, batch), axes)
        (value, aux), grads = _microbatches.value_and_grad(
            objective, params, microbatch_size
        )
        if aux is not None and not has_aux:
            raise TypeError(
                f"{who}: value_fn returned a tuple (loss, aux), expected a scalar "
                "loss: pass has_aux=True."
            )
        # optax wants the gradients of complex parameters conjugated.
        local = value, aux, pytree.conj(grads)
        value, aux, grads = reductions.mean_or_first(local, axis_name)
        mapped = objective._replace(reduced_value=value, product_dtype=product_dtype)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=MappedLoss(mapped),
        )
        infos = _info.find_infos(state)
        metrics = StepMetrics(value, aux, infos[0] if len(infos) == 1 else None)
        return optax.apply_updates(params, updates), state, metrics

    step = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(P(), P(), P(axis_name), P()),
        out_specs=P(),
        axis_names={axis_name},
        # Types that track what varies would refuse models with a loop inside, whose
        # carry begins with zeros. What leaves this function is averaged, or computed
        # by every device from the same numbers.
        check_vma=False,
    )
    return TrainStep(step, mesh, axis_name, donate)
