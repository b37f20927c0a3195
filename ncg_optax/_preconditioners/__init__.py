"""Preconditioners: one file each."""

from ncg_optax._preconditioners._base import Preconditioner as Preconditioner
from ncg_optax._preconditioners._base import identity as identity
from ncg_optax._preconditioners._kronecker import KroneckerState as KroneckerState
from ncg_optax._preconditioners._kronecker import kronecker as kronecker
