"""Preconditioners: one file each."""

from ncg_optax._preconditioners._base import Preconditioner as Preconditioner
from ncg_optax._preconditioners._base import identity as identity
from ncg_optax._preconditioners._compose import ComposeState as ComposeState
from ncg_optax._preconditioners._compose import compose as compose
from ncg_optax._preconditioners._jacobi import JacobiState as JacobiState
from ncg_optax._preconditioners._jacobi import jacobi as jacobi
from ncg_optax._preconditioners._kronecker import KroneckerState as KroneckerState
from ncg_optax._preconditioners._kronecker import kronecker as kronecker
from ncg_optax._preconditioners._nystrom import NystromState as NystromState
from ncg_optax._preconditioners._nystrom import nystrom as nystrom
