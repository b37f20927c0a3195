"""Fits whose weight decay and noise level follow from the evidence."""

from ncg_optax.evidence.result import BayesianFit

__all__ = ["BayesianFit"]
