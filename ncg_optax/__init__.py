"""Newton-CG (Hessian-free, truncated Newton) optimisation for JAX.

A pure optax transformation: :func:`newton_cg` for deterministic problems,
:func:`hessian_free` for networks, :func:`stochastic_hessian_free` for mini-batches,
:func:`minimize` for a whole solve.
"""

from ncg_optax._alias import hessian_free as hessian_free
from ncg_optax._alias import newton_cg as newton_cg
from ncg_optax._alias import stochastic_hessian_free as stochastic_hessian_free
from ncg_optax._averaged import averaged_gradient as averaged_gradient
from ncg_optax._batches import Sampling as Sampling
from ncg_optax._batches import sampling as sampling
from ncg_optax._cg import CGState as CGState
from ncg_optax._cg import cg as cg
from ncg_optax._cg import conjugate_gradient as conjugate_gradient
from ncg_optax._check import OperatorReport as OperatorReport
from ncg_optax._check import check_operator as check_operator
from ncg_optax._collectives import value_and_grad as value_and_grad
from ncg_optax._curvature import Curvature as Curvature
from ncg_optax._curvature import curvature_product as curvature_product
from ncg_optax._curvature import empirical_fisher as empirical_fisher
from ncg_optax._curvature import gauss_newton as gauss_newton
from ncg_optax._curvature import hessian as hessian
from ncg_optax._damping import Damping as Damping
from ncg_optax._damping import LevenbergMarquardtState as LevenbergMarquardtState
from ncg_optax._damping import levenberg_marquardt as levenberg_marquardt
from ncg_optax._diagnose import Diagnosis as Diagnosis
from ncg_optax._diagnose import diagnose as diagnose
from ncg_optax._growth import GrowthState as GrowthState
from ncg_optax._info import NewtonCGInfo as NewtonCGInfo
from ncg_optax._info import get_info as get_info
from ncg_optax._linesearch import LineSearch as LineSearch
from ncg_optax._linesearch import SearchResult as SearchResult
from ncg_optax._linesearch import armijo as armijo
from ncg_optax._linesearch import safeguard as safeguard
from ncg_optax._loss import CompositeLoss as CompositeLoss
from ncg_optax._minimize import MinimizeResult as MinimizeResult
from ncg_optax._minimize import minimize as minimize
from ncg_optax._minres import minimum_residual as minimum_residual
from ncg_optax._minres import minres as minres
from ncg_optax._momentum import QuadraticMomentumState as QuadraticMomentumState
from ncg_optax._momentum import quadratic_momentum as quadratic_momentum
from ncg_optax._preconditioners import Preconditioner as Preconditioner
from ncg_optax._preconditioners import compose as compose
from ncg_optax._preconditioners import identity as identity
from ncg_optax._preconditioners import jacobi as jacobi
from ncg_optax._preconditioners import kronecker as kronecker
from ncg_optax._preconditioners import nystrom as nystrom
from ncg_optax._quasi_newton import QuasiNewtonState as QuasiNewtonState
from ncg_optax._quasi_newton import SecantPairs as SecantPairs
from ncg_optax._quasi_newton import quasi_newton as quasi_newton
from ncg_optax._residual_space import ResidualSpaceState as ResidualSpaceState
from ncg_optax._residual_space import residual_space as residual_space
from ncg_optax._run import Finding as Finding
from ncg_optax._solver import CGResult as CGResult
from ncg_optax._solver import Outcome as Outcome
from ncg_optax._solver import Solver as Solver
from ncg_optax._status import Status as Status
from ncg_optax._status import explain as explain
from ncg_optax._steihaug import SteihaugState as SteihaugState
from ncg_optax._steihaug import steihaug as steihaug
from ncg_optax._switch import SwitchAfterState as SwitchAfterState
from ncg_optax._switch import switch_after as switch_after
from ncg_optax._transform import ScaleByNewtonCGState as ScaleByNewtonCGState
from ncg_optax._transform import scale_by_newton_cg as scale_by_newton_cg
from ncg_optax.parallel import make_train_step as make_train_step

__version__ = "0.3.0"
