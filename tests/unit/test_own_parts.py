"""Parts of one's own that forget a method or return the wrong thing."""

import jax
import jax.numpy as jnp
import pytest

import ncg_optax as ncg
from ncg_optax.solvers import conjugate_gradient

W = jnp.zeros(3)


def loss(w):
    return jnp.sum(jnp.square(w - 1))


def update(**parts):
    """One update, traced only."""
    tx = ncg.newton_cg(**parts)
    state = tx.init(W)
    return jax.eval_shape(lambda w: tx.update(w, state, w, value_fn=loss), W)


def solve(model):
    return conjugate_gradient(model.product, model.rhs, maxiter=3, tolerance=0.0)


class NoSolve(ncg.solvers.KrylovSolver):
    pass


class OnlyResult(ncg.solvers.Solver):
    def solve(self, model, state):
        return solve(model)


class OnlyDirection(ncg.solvers.Solver):
    def solve(self, model, state):
        return model.rhs, state


class VectorStatus(ncg.solvers.Solver):
    def solve(self, model, state):
        return solve(model)._replace(status=jnp.ones(2, int)), state


class WrongShape(ncg.solvers.Solver):
    def solve(self, model, state):
        return solve(model)._replace(solution=jnp.zeros(4)), state


class NewState(ncg.solvers.Solver):
    def solve(self, model, state):
        return solve(model), jnp.zeros(2)


@pytest.mark.parametrize(
    ("solver", "sentence"),
    [
        (NoSolve(), r"NoSolve\(\): solve must return .*got NoneType \(does the class"),
        (ncg.quasi_newton(NoSolve()), r"NoSolve\(\): solve must return"),
        (ncg.quadratic_momentum(NoSolve()), r"NoSolve\(\): solve must return"),
        (OnlyResult(), r"return \(SolverResult, state\), got SolverResult\."),
        (OnlyDirection(), "got a tuple of .*, tuple"),
        (VectorStatus(), "solve must return status as a number"),
        (WrongShape(), r"the result of solve has shape \(4,\).* shape \(3,\)"),
        (NewState(), r"NewState\(\): the state must keep .* with \(2,\), expected"),
    ],
)
def test_a_solver(solver, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        update(solver=solver)


class NoSearch(ncg.globalization.LineSearch):
    pass


class TupleSearch(ncg.globalization.LineSearch):
    def search(self, line):
        return 0.5, line.loss_at(0.5)


class VectorStep(ncg.globalization.LineSearch):
    def search(self, line):
        step = jnp.ones(2)
        return ncg.globalization.SearchResult(step, line.loss, jnp.array(1), True)


@pytest.mark.parametrize(
    ("linesearch", "sentence"),
    [
        (NoSearch(), r"NoSearch\(\): search must return a SearchResult, got NoneType"),
        (TupleSearch(), "search must return a SearchResult, got a tuple of float"),
        (VectorStep(), r"VectorStep\(\): search must return step_size as a number"),
    ],
)
def test_a_line_search(linesearch, sentence):
    with pytest.raises(TypeError, match=sentence):
        update(linesearch=linesearch)


class NoValue(ncg.globalization.Damping):
    pass


class OneValue(ncg.globalization.Damping):
    def value(self, state, count, measure):
        return 0.1


class VectorValue(ncg.globalization.Damping):
    def value(self, state, count, measure):
        return jnp.ones(2), state, 0


class NoState(ncg.globalization.Damping):
    def init(self, dtype):
        return jnp.ones((), dtype)

    def value(self, state, count, measure):
        return state, state, 0

    def update(self, state, outcome):
        pass


@pytest.mark.parametrize(
    ("damping", "sentence"),
    [
        (NoValue(), r"NoValue\(\): value must return \(damping, state, products\)"),
        (OneValue(), r"value must return .*got float\."),
        (VectorValue(), r"value must return damping as a number, .* got shape \(2,\)"),
        (NoState(), r"NoState\(\): the state must keep .* got NoneType, expected"),
    ],
)
def test_a_damping_rule(damping, sentence):
    with pytest.raises(TypeError, match=sentence):
        update(damping=damping)


class NoApply(ncg.preconditioners.Preconditioner):
    pass


class OtherShape(ncg.preconditioners.Preconditioner):
    def apply(self, state, r, damping):
        return r[:2]


class OtherTree(ncg.preconditioners.Preconditioner):
    def apply(self, state, r, damping):
        return {"a": r}


class OnlyState(OtherTree):
    def update(self, state, product, grads, damping, key, count):
        return state


class NoShare(OtherTree):
    fraction = 0.0


class NoSqrt(ncg.preconditioners.Preconditioner):
    has_sqrt = True

    def apply(self, state, r, damping):
        return r


@pytest.mark.parametrize("solver", [ncg.cg(), ncg.minres()])
@pytest.mark.parametrize(
    ("preconditioner", "sentence"),
    [
        (NoApply(), r"NoApply\(\): apply must return a tree .*got NoneType"),
        (OtherShape(), r"the result of apply has shape \(2,\).* shape \(3,\)"),
        (OtherTree(), r"the leaves \['a'\] and .* has \(the tree itself\)"),
        (OnlyState(), r"update must return \(state, products\)"),
        (NoShare(), r"preconditioner: fraction must be a number in \(0, 1\], got 0"),
    ],
)
def test_a_preconditioner(preconditioner, solver, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        update(preconditioner=preconditioner, solver=solver)


def test_a_square_root_that_is_promised_only():
    with pytest.raises(NotImplementedError, match=r"NoSqrt\(\).*no method sqrt"):
        update(preconditioner=ncg.compose(NoSqrt(), ncg.jacobi()))


class NoLinearize(ncg.curvature.Curvature):
    cost = 1.0


class NoCost(ncg.curvature.Curvature):
    def linearize(self, objective, params):
        return objective.value(params), lambda v: v


class OnlyProduct(ncg.curvature.Curvature):
    cost = 1.0

    def linearize(self, objective, params):
        return lambda v: v


@pytest.mark.parametrize(
    ("curvature", "sentence"),
    [
        (NoLinearize(), r"NoLinearize\(\): linearize must return \(loss, product\)"),
        (NoCost(), "curvature: cost must be a number .* got None"),
        (OnlyProduct(), r"linearize must return .* got function"),
    ],
)
def test_a_curvature(curvature, sentence):
    with pytest.raises(TypeError, match=sentence):
        update(curvature=curvature)
