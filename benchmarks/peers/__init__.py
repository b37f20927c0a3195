"""The optimizers that compete, by name, in the order in which they are listed."""

from functools import partial
from typing import Any

import optax
from optax.contrib import muon

import ncg_optax as ncg
from benchmarks.peers import newton
from benchmarks.peers.base import Competitor, Method, Problem, Setting
from benchmarks.peers.first_order import lbfgs, sgd, tuned, tuned_average
from benchmarks.peers.kfac import kfac
from benchmarks.peers.soap import soap

_FIRST_ORDER = [
    tuned("adam", "optax.adam", optax.adam, range(-7, -1)),
    tuned("sgd", "optax.sgd, Nesterov momentum 0.9", sgd, range(-5, 1)),
    tuned("adamw", "optax.adamw", optax.adamw, range(-7, -1)),
    tuned("muon", "optax.contrib.muon", muon, range(-6, 0)),
    tuned(
        "soap",
        "SOAP (Vyas et al. 2024), its decompositions in the seconds only",
        soap,
        range(-7, -1),
    ),
]
_AVERAGED = (
    tuned_average("adam", "optax.adam", optax.adam, range(-7, -1)),
    tuned_average("soap", "SOAP (Vyas et al. 2024)", soap, range(-7, -1)),
)


def _ablation(
    name: str, what: str, *, tuned: bool = False, **changes: Any
) -> Competitor:
    """`kronecker_adam` with one part changed."""
    return Competitor(
        f"kronecker_adam_{name}",
        f"kronecker_adam {what}",
        partial(newton.kronecker_adam, **changes),
        range(-6, 0) if tuned else range(0),
        schedules=("constant",) if tuned else (),
        minibatch=True,
        named_only=True,
    )


_ABLATIONS = (
    _ablation("last", "at the last iterate, not at the average", averaged=False),
    _ablation("unrotated", "without bases", bases=ncg.minibatch.eigenbases(1)),
    _ablation(
        "blocks",
        "with bases for blocks of sides longer than 256",
        bases=ncg.minibatch.eigenbases(max_size=8192, block_size=256),
    ),
    _ablation("tuned", "with a constant learning rate, tuned", tuned=True),
    _ablation(
        "curvature",
        "with curvature products in its bases",
        curvature=ncg.gauss_newton(),
    ),
)
_FULL, _SMALL = zip(*_FIRST_ORDER, strict=True)

COMPETITORS: dict[str, Competitor] = {
    competitor.name: competitor
    for competitor in (
        Competitor(
            "newton_cg",
            "ncg_optax.newton_cg(), full batch, no settings",
            newton.preset("newton_cg", "hessian"),
        ),
        Competitor(
            "hessian_free",
            "ncg_optax.hessian_free(), full batch, no settings",
            newton.preset("hessian_free", "gauss_newton"),
        ),
        Competitor(
            "residual_space",
            "ncg_optax.residual_space(), exact Gauss-Newton steps, no settings",
            newton.residual_space,
            exact=True,
            deterministic=True,
        ),
        *_FULL[:2],
        Competitor(
            "lbfgs", "optax.lbfgs(), full batch, no settings", lbfgs, deterministic=True
        ),
        *_FULL[2:],
        Competitor(
            "kfac",
            "kfac-jax, full batch, no settings; units leave its factorisations out",
            kfac,
            registers=True,
            deterministic=True,
        ),
        Competitor(
            "stochastic_hessian_free",
            "ncg_optax.stochastic_hessian_free(), batches of 512 examples or tokens",
            newton.stochastic,
            minibatch=True,
        ),
        Competitor(
            "kronecker_adam",
            "ncg_optax.kronecker_adam(), mini-batches, no settings",
            newton.kronecker_adam,
            minibatch=True,
        ),
        Competitor(
            "sgd_then_hessian_free",
            "SGD (learning rate tuned) for half of the budget, then "
            "stochastic_hessian_free",
            newton.sgd_then_stochastic,
            range(-5, 1),
            minibatch=True,
            batch=newton.BATCH,
        ),
        Competitor(
            "poster",
            "the poster's Newton-CG method with the poster's settings",
            newton.poster,
            needs_poster=True,
        ),
        *_SMALL,
        *_AVERAGED,
        *_ABLATIONS,
    )
}

__all__ = ["COMPETITORS", "Competitor", "Method", "Problem", "Setting"]
