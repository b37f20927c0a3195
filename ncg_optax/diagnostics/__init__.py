"""What a run tells about itself."""

from ncg_optax.diagnostics.base import Finding
from ncg_optax.diagnostics.check_operator import OperatorReport
from ncg_optax.diagnostics.diagnose import Diagnosis

__all__ = ["Diagnosis", "Finding", "OperatorReport"]
