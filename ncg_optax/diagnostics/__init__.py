"""Problems of a run found from its measurements; checks, logging and plots."""

from ncg_optax.diagnostics.base import Finding
from ncg_optax.diagnostics.check_operator import OperatorReport
from ncg_optax.diagnostics.diagnose import Diagnosis

__all__ = ["Diagnosis", "Finding", "OperatorReport"]
