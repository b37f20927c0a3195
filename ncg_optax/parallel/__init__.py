"""Data-parallel training on any number of devices and processes."""

from ncg_optax.parallel.placement import (
    data_mesh,
    replicate,
    require_agreement,
    shard_batch,
)
from ncg_optax.parallel.train_step import StepMetrics, TrainStep, make_train_step

__all__ = [
    "StepMetrics",
    "TrainStep",
    "data_mesh",
    "make_train_step",
    "replicate",
    "require_agreement",
    "shard_batch",
]
