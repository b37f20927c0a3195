"""Curvature matrices. Only their products with vectors are computed."""

from ncg_optax.curvature.base import Curvature, SampledProduct, curvature_product
from ncg_optax.curvature.sampling.growth import GrowthState
from ncg_optax.curvature.sampling.settings import Sampling

__all__ = [
    "Curvature",
    "GrowthState",
    "SampledProduct",
    "Sampling",
    "curvature_product",
]
