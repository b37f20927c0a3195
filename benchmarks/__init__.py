"""The benchmark program: Newton-CG against tuned first-order methods on real data.

``python -m benchmarks --help`` says how to use it. Nothing in ``ncg_optax`` imports
from here.
"""
