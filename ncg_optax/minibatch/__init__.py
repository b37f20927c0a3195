"""Adam in the eigenbases of Kronecker factors, for mini-batches."""

from ncg_optax.minibatch.average import averaged_params
from ncg_optax.minibatch.eigenbasis import eigenbases
from ncg_optax.minibatch.info import KroneckerAdamInfo
from ncg_optax.minibatch.state import KroneckerAdamState
from ncg_optax.minibatch.transform import kronecker_adam

__all__ = [
    "KroneckerAdamInfo",
    "KroneckerAdamState",
    "averaged_params",
    "eigenbases",
    "kronecker_adam",
]
