"""Preconditioners: one file each."""

from ncg_optax._preconditioners._base import Preconditioner as Preconditioner
from ncg_optax._preconditioners._base import identity as identity
