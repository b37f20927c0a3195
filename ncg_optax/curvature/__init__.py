"""Curvature matrices, known by their products with vectors."""

from ncg_optax.curvature.gauss_newton import Curvature, curvature_product
from ncg_optax.curvature.sampling.every_kth import Sampling
from ncg_optax.curvature.sampling.growth import GrowthState

__all__ = ["Curvature", "GrowthState", "Sampling", "curvature_product"]
