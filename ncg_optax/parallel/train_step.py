"""Data-parallel training: one jitted step on any number of devices and processes.

The batch is distributed over one axis of a mesh. The parameters are the same on all
devices along this axis, and may be sharded over the other axes. Each device computes
the loss, the gradient and the curvature products on its share of the batch. Three
things are averaged over the devices: the gradient and each curvature product, vectors
of the size of the parameters, and the loss at each point. Every device does the rest of
the computation, conjugate gradients included, on the same numbers.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax._utils.compile_log import LoggedJit
from ncg_optax.curvature.sampling.microbatches import value_and_grad
from ncg_optax.losses.arguments import (
    data_names,
    named_parameters,
    warn_of_unused,
)
from ncg_optax.losses.objective import (
    MappedLoss,
    Objective,
    as_objective,
    bind_constants,
    functions_of,
)
from ncg_optax.losses.scalar import has_aux as has_aux_output
from ncg_optax.parallel.placement import (
    automatic_mesh,
    check_rows,
    data_mesh,
    is_traced,
    place,
    replicate,
    require_agreement,
    shard_batch,
)
from ncg_optax.step.info import find_measurements

PyTree = Any


class StepMetrics(NamedTuple):
    """What a step of :func:`make_train_step` reports, the same on every device.

    Attributes:
      loss: over the whole batch, at the parameters before the step, shape=().
      aux: of ``value_fn``, with ``has_aux``; None otherwise. Floating-point numbers
        are averaged over the devices; all other leaves are those of the first device.
      info: what :func:`get_info` returns, as a :class:`ncg_optax.step.NewtonCGInfo`;
        None if the state of the optimizer has none, as that of ``optax.adam``.

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
    info: Any


class TrainStep:
    """The jitted step that :func:`make_train_step` returns; call it.

    Attributes:
      mesh: the mesh it runs on.
      axis_name: the axis of the mesh over which the batch is distributed.

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
        self._shapes = None
        donated = (0, 1) if donate else ()
        self._jitted = LoggedJit("make_train_step", step, donate_argnums=donated)

    def _place(self, params, state, batch, extra):
        """The arguments on the devices where the step needs them."""
        # The processes compare the values at the first step only. Later values are
        # results of the steps, and a comparison makes the processes wait.
        place_values = replicate if self._shapes is None else place
        params, state, extra = place_values((params, state, extra), self.mesh)
        batch = shard_batch(batch, self.mesh, self.axis_name)
        parts = self.mesh.shape[self.axis_name]
        check_rows(batch, parts, self.axis_name, "make_train_step")
        return params, state, batch, extra

    def _check_processes(self, arguments):
        """Checks that all processes are about to run the same program."""
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), arguments)
        if shapes == self._shapes:
            return
        if self._shapes is not None:
            # A comparison would wait for ever if the others continue with the step.
            raise ValueError(
                "make_train_step: with several processes the shapes must stay the "
                f"same from step to step; got batch {shapes[2]}, expected "
                f"{self._shapes[2]}."
            )
        program = self._jitted.lower(*arguments, before_a_call=True).as_text()
        require_agreement(
            "make_train_step: the program (shapes, settings, seeds)", [program]
        )
        self._shapes = shapes

    def __call__(
        self, params: PyTree, state: PyTree, batch: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree, StepMetrics]:
        """One step: the new parameters, the new state and the metrics."""
        arguments = self._place(params, state, batch, extra)
        traced = any(map(is_traced, jax.tree.leaves(arguments)))
        if jax.process_count() > 1 and not traced:
            self._check_processes(arguments)
        return self._jitted(*arguments)

    def lower(
        self, params: PyTree, state: PyTree, batch: PyTree, **extra: Any
    ) -> jax.stages.Lowered:
        """The step lowered for such arguments, for its HLO, cost or memory analysis."""
        return self._jitted.lower(*self._place(params, state, batch, extra))


def _by_name(value_fn: Callable, batch: PyTree) -> Mapping[str, PyTree]:
    """The batch as keyword arguments of ``value_fn``: a dictionary of them, or one.

    Raises:
      TypeError: if the batch is no dictionary, or empty, and ``value_fn`` needs data.
    """
    names, takes_any = data_names(value_fn)
    if isinstance(batch, Mapping) and (takes_any or set(names) & set(batch)):
        warn_of_unused("make_train_step", functions_of(value_fn), batch)
        return batch
    needed = [p.name for p in named_parameters(value_fn) if p.default is p.empty]
    example = ", ".join(f"{name}=..." for name in needed)
    if len(needed) > 1:
        raise TypeError(
            f"make_train_step: batch must be dict({example}), because value_fn takes "
            f"several arguments; got {validate.type_name(batch)}."
        )
    if needed and not jax.tree.leaves(batch):
        raise TypeError(
            f"make_train_step: batch has no arrays, but value_fn takes data: pass "
            f"dict({example})."
        )
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
    r"""A jitted training step on one or many devices and processes.

    .. math::
      \theta \leftarrow \theta + \mathrm{tx}\Big(\frac1n \sum_{d=1}^n \nabla f_d\Big),
      \qquad B v = \frac1n \sum_{d=1}^n B_d v

    with :math:`f_d` the loss on the share of device :math:`d`. The result is that of
    one device with the whole batch. The optimizer needs no ``axis_name``: the step
    passes the axes along with the loss. Any optax optimizer can be used.

    Args:
      value_fn: the loss, the *mean* over the examples: a plain function or a
        :class:`ncg_optax.CompositeLoss`. If the batch is a dictionary of its arguments
        it is called as ``value_fn(params, **batch)``, else as
        ``value_fn(params, batch)``.
      tx: the optimizer, such as ``ncg_optax.hessian_free()``.
      mesh: a `jax.sharding.Mesh`; None for :func:`data_mesh`. Parameters and state
        may be sharded over its other axes and keep their sharding.
      axis_name: the axis of the mesh over which the batch is distributed.
      has_aux: whether ``value_fn`` returns ``(loss, aux)``.
      microbatch_size: examples of a device at a time in the gradient, to limit its
        memory; for the products there is ``sampling(microbatch_size=...)``.
      product_dtype: dtype in which curvature products are sent between devices, such
        as ``jnp.bfloat16`` to halve the traffic; None for the dtype of the parameters.
        Inner products are accumulated in float32 or wider in any case.
      donate: whether to reuse the memory of the parameters and state passed in, which
        cannot be used after the step. Arrays that had to be moved to the mesh first
        can.

    Returns:
      A function ``step(params, state, batch, **extra) -> (params, state, metrics)``,
      see :class:`StepMetrics`. The leaves of ``batch`` have the examples along their
      first axis; with several processes each passes its own rows (see
      :func:`shard_batch`). ``extra`` is passed to ``value_fn`` by name as well, the
      same on all devices: a random key, batch statistics. ``step.lower(...)`` returns
      the lowered program.

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
    validate.function(f"{who}: value_fn", value_fn)
    validate.flag(f"{who}: has_aux", has_aux)
    validate.flag(f"{who}: donate", donate)
    reductions.as_axes(axis_name)
    validate.component(f"{who}: tx", tx, optax.GradientTransformation, "hessian_free()")
    if microbatch_size is not None:
        validate.integer(f"{who}: microbatch_size", microbatch_size, low=1)
    if product_dtype is not None:
        validate.float_dtype(f"{who}: product_dtype", product_dtype, "jnp.bfloat16")
    mesh = data_mesh(axis_name) if mesh is None else mesh
    mesh = automatic_mesh(mesh, axis_name, who)
    local_step = functools.partial(
        _local_step,
        value_fn,
        optax.with_extra_args_support(tx),
        axis_name,
        has_aux,
        microbatch_size,
        product_dtype,
    )
    step = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(P(), P(), P(axis_name), P()),
        out_specs=P(),
        axis_names={axis_name},
        # With the check, a model with a loop whose carry starts with zeros is refused.
        # The outputs of the step need no check: they are averaged, or computed by
        # every device from the same numbers.
        check_vma=False,
    )
    return TrainStep(step, mesh, axis_name, donate)


def _require_aux(value_fn: Any, objective: Objective, params: PyTree) -> None:
    """Raises unless ``value_fn`` returns ``(loss, aux)``; the aux may be None."""
    out = jax.eval_shape(lambda p: value_fn(p, **objective.data), params)
    if not has_aux_output(out):
        raise TypeError(
            "make_train_step: value_fn must return (loss, aux), because has_aux=True; "
            "got the loss alone. (A CompositeLoss returns both if it has has_aux=True "
            "itself.)"
        )


def _local_step(
    value_fn: Callable[..., Any],
    tx: optax.GradientTransformationExtraArgs,
    axis_name: str,
    has_aux: bool,
    microbatch_size: int | None,
    product_dtype: Any,
    params: PyTree,
    state: PyTree,
    batch: PyTree,
    extra: Mapping[str, Any],
) -> tuple[PyTree, PyTree, StepMetrics]:
    """The step on one device, with its share of the batch."""
    # `extra` is not data, which may be cut to fewer examples.
    warn_of_unused("make_train_step", functions_of(value_fn), extra)
    loss = bind_constants(value_fn, extra)
    objective = as_objective(loss, _by_name(loss, batch), (axis_name,))
    (value, aux), grads = value_and_grad(objective, params, microbatch_size)
    if aux is not None and not has_aux:
        raise TypeError(
            "make_train_step: value_fn returned a tuple (loss, aux), expected a scalar "
            "loss: pass has_aux=True."
        )
    if has_aux and aux is None:
        _require_aux(loss, objective, params)
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
    infos = find_measurements(state)
    metrics = StepMetrics(value, aux, infos[0] if len(infos) == 1 else None)
    return optax.apply_updates(params, updates), state, metrics
