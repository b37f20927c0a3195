"""The parts of a step, checked and completed."""

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
    """What :func:`scale_by_newton_cg` was given, as the stages of a step use it.

    Attributes:
      curvature: computed on a microbatch at a time if that was asked for.
      damping: a rule.
      solver: of the damped system.
      preconditioner: None for none.
      linesearch: without one, what evaluates the loss at the end of the step if the
        damping or the solver needs it.
      mask: which leaves to train.
      sampling: which examples the curvature sees.
      grow_below: that of ``sampling``; None if the sample never grows.
      axes: names of the mapped axes.
      seed: of the randomised parts.
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
    """The settings of a step, see :func:`newton_cg` for what they are.

    Raises:
      TypeError: if a part is not what its name says.
      ValueError: if a number is out of range, or if the line search would reject the
        directions of the solver.
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
        steered = damping.needs_outcome or solver.needs_outcome
        trial = safeguard() if solver.may_ascend else single_trial()
        linesearch = trial if steered else full_step()
    validate.component("linesearch", linesearch, LineSearch, "armijo(), or None")
    if solver.may_ascend and not linesearch.tolerates_rise:
        raise ValueError(
            "linesearch must be one that tolerates a rise of the loss, such as "
            "safeguard(), or None with a solver whose directions may lead uphill on a "
            f"batch, as those of averaged_gradient() do; got {linesearch!r}."
        )
    return Settings(
        curvature=curvature_in_microbatches(curvature, sampling.microbatch_size),
        damping=damping,
        solver=solver,
        preconditioner=preconditioner,
        linesearch=linesearch,
        mask=mask,
        sampling=sampling,
        # The loss that a direct solver works on is that of one sample, for good.
        grow_below=None if isinstance(solver, DirectSolver) else sampling.grow_below,
        axes=reductions.as_axes(axis_name),
        seed=seed,
    )
