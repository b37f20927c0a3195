"""The settings of a step, checked and with the defaults filled in."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from ncg_optax._utils import reductions, validate
from ncg_optax.curvature.base import Curvature
from ncg_optax.curvature.sampling.microbatches import curvature_in_microbatches
from ncg_optax.curvature.sampling.settings import Sampling
from ncg_optax.globalization.base import Damping, LineSearch
from ncg_optax.globalization.damping import as_damping
from ncg_optax.globalization.fixed_steps import full_step, single_trial
from ncg_optax.globalization.safeguard import safeguard
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.solvers.base import DirectSolver, Solver

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of :func:`scale_by_newton_cg` in the form that the stages use.

    Attributes:
      curvature: the curvature; in microbatches with ``sampling.microbatch_size``.
      damping: the damping rule.
      solver: the solver of the damped system.
      preconditioner: the preconditioner, or None.
      linesearch: the line search. For ``linesearch=None`` it takes the full step, and
        evaluates the loss there if the damping rule or the solver needs it.
      mask: which leaves to train; None for all.
      sampling: which examples the curvature is computed on.
      grow_below: ``sampling.grow_below``; None if the curvature never changes from the
        sample to the whole batch.
      axes: names of the mapped axes.
      seed: seed of the random numbers of the preconditioner.
    """

    curvature: Curvature
    damping: Damping
    solver: Solver
    preconditioner: Preconditioner | None
    linesearch: LineSearch
    mask: PyTree | Callable[[PyTree], PyTree] | None
    sampling: Sampling
    grow_below: float | None
    axes: tuple[str, ...]
    seed: int


def complete(
    *,
    curvature: Curvature,
    damping: float | optax.Schedule | Damping,
    solver: Solver,
    preconditioner: Preconditioner | None,
    linesearch: LineSearch | None,
    mask: PyTree | Callable[[PyTree], PyTree] | None,
    sampling: Sampling,
    axis_name: str | tuple[str, ...] | None,
    seed: int,
) -> Settings:
    """Checks the settings, which :func:`newton_cg` explains, and fills in defaults.

    Raises:
      TypeError: if a setting has the wrong type.
      ValueError: if a number is out of range, or if the solver has ``may_ascend`` and
        the line search does not have ``tolerates_rise``.
    """
    validate.component("curvature", curvature, Curvature, "hessian(), gauss_newton()")
    validate.number("curvature: cost", getattr(curvature, "cost", None), low=0.0)
    validate.component("solver", solver, Solver, "cg(), steihaug(), minres()")
    validate.component("sampling", sampling, Sampling, "sampling()")
    if preconditioner is not None:
        made_by = "kronecker(), or None"
        validate.component("preconditioner", preconditioner, Preconditioner, made_by)
        fraction = preconditioner.fraction
        who = "preconditioner: fraction"
        validate.number(who, fraction, low=0.0, high=1.0, low_open=True)
    if not hasattr(seed, "dtype"):  # under optax.inject_hyperparams it is an array
        validate.integer("seed", seed, low=-(2**31))
    damping = as_damping(damping)
    if linesearch is None:
        needs_loss = damping.needs_outcome or solver.needs_outcome
        trial = safeguard() if solver.may_ascend else single_trial()
        linesearch = trial if needs_loss else full_step()
    validate.component("linesearch", linesearch, LineSearch, "armijo(), or None")
    if solver.may_ascend and not linesearch.tolerates_rise:
        raise ValueError(
            "linesearch must be one that tolerates a rise of the loss, such as "
            "safeguard(), or None with a solver whose directions may increase the loss "
            f"of a batch, such as averaged_gradient(); got {linesearch!r}."
        )
    return Settings(
        curvature=curvature_in_microbatches(curvature, sampling.microbatch_size),
        damping=damping,
        solver=solver,
        preconditioner=preconditioner,
        linesearch=linesearch,
        mask=mask,
        sampling=sampling,
        # A direct solver uses the loss of the sample, whose examples are fixed.
        grow_below=None if isinstance(solver, DirectSolver) else sampling.grow_below,
        axes=reductions.as_axes(axis_name),
        seed=seed,
    )
