"""One update of the optimizer, from gradients to updates."""

from ncg_optax.step.info import NewtonCGInfo
from ncg_optax.step.state import ScaleByNewtonCGState

__all__ = ["NewtonCGInfo", "ScaleByNewtonCGState"]
