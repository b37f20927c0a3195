"""The five stages of an update, each alone, against dense matrices.

A stage gets the results of those before it; tests change single fields of these.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import (
    assert_trees_equal,
    dense_gradient,
    dense_hessian,
    flat,
    tiny_net,
)

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.step.direction import find_direction
from ncg_optax.step.model import build_model
from ncg_optax.step.next_state import next_state, scaled_updates
from ncg_optax.step.point import read_point
from ncg_optax.step.settings import complete
from ncg_optax.step.state import first_state
from ncg_optax.step.trial import try_step

pytestmark = pytest.mark.usefixtures("x64")

OUT_ONLY = {"hidden": False, "out": True}
# With this damping the Hessian of the net is positive definite, on a sample as well.
DAMPING = 20.0
EXACT = ncg.cg(maxiter=50, rtol=1e-13, forcing=None)


def settings_of(**changes):
    defaults = dict(ncg.presets.DEFAULTS["newton_cg"], damping=DAMPING, solver=EXACT)
    del defaults["learning_rate"]
    return complete(**defaults | changes)


class Stages:
    """The results of the stages, each computed when it is asked for."""

    def __init__(self, dtype=jnp.float64, **changes):
        self.settings = settings_of(**changes)
        self.params, self.loss = tiny_net(dtype)
        self.grads = jax.grad(self.loss)(self.params)
        self.state = first_state(self.settings, self.params)

    def point(self):
        return read_point(self.settings, self.grads, self.params, self.loss, {})

    def built(self, curvature_batch=None):
        return build_model(self.settings, self.point(), self.state, curvature_batch)

    def direction(self, built=None):
        built = self.built() if built is None else built
        return find_direction(self.settings, self.point(), built, self.state)

    def trial(self, direction):
        return try_step(self.settings, self.point(), self.built(), direction)

    def next_state(self, built, direction, trial):
        point = self.point()
        return next_state(self.settings, point, built, direction, trial, self.state)


def dtypes(tree):
    return {str(x.dtype) for x in jax.tree.leaves(tree)}


def matrix(product, like):
    """The columns ``B e_i``."""
    vec, unravel = ravel_pytree(like)
    columns = [ravel_pytree(product(unravel(e)))[0] for e in jnp.eye(vec.size)]
    return np.asarray(jnp.stack(columns, axis=1))


def on_examples(loss, rows):
    return loss.bind(x=loss.data["x"][rows], y=loss.data["y"][rows])


class TestReadPoint:
    def test_gradient_and_loss(self):
        stages = Stages()
        point = stages.point()
        assert_trees_equal(point.params, stages.params)
        expected = dense_gradient(stages.loss, stages.params)
        np.testing.assert_allclose(flat(point.gradient), expected, rtol=1e-12)
        assert point.objective.value(point.params) == stages.loss(stages.params)
        assert point.loss is None and point.given_loss is None and point.axes == ()

    def test_a_mask_leaves_the_trained_leaves(self):
        stages = Stages(mask=OUT_ONLY)
        point = stages.point()
        assert point.params["hidden"] == {"w": None, "b": None}
        assert point.gradient["hidden"] == {"w": None, "b": None}
        assert_trees_equal(point.gradient["out"], stages.grads["out"])
        # The frozen leaves are part of the objective.
        moved = jax.tree.map(lambda x: x + 1.0, point.params)
        expected = stages.loss({**stages.params, "out": moved["out"]})
        assert point.objective.value(moved) == expected

    def test_params_keep_their_dtype_and_the_gradient_is_widened(self):
        point = Stages(jnp.bfloat16).point()
        assert dtypes(point.params) == {"bfloat16"}
        assert dtypes(point.gradient) == {"float32"}
        assert point.dtype == jnp.float32

    def test_the_gradient_is_averaged_over_devices(self):
        settings = settings_of(axis_name="data")

        def gradient(grads):
            return read_point(settings, grads, jnp.ones(2), jnp.sum, {}).gradient

        each = jnp.array([[1.0, 2.0], [3.0, 6.0]])
        found = jax.vmap(gradient, axis_name="data")(each)
        np.testing.assert_array_equal(found, [[2.0, 4.0], [2.0, 4.0]])

    def test_a_given_loss_is_kept_to_be_checked(self):
        stages = Stages()
        extra = {"value": jnp.asarray(3.0)}
        point = read_point(
            stages.settings, stages.grads, stages.params, stages.loss, extra
        )
        assert point.given_loss == 3.0 and point.loss is None


class TestBuildModel:
    def test_the_model_is_the_taylor_polynomial(self):
        stages = Stages()
        built = stages.built()
        model = built.model
        np.testing.assert_allclose(
            matrix(model.product, stages.params),
            dense_hessian(stages.loss, stages.params),
            rtol=1e-12,
            atol=1e-12,
        )
        assert_trees_equal(model.gradient, stages.grads)
        assert model.loss == built.loss == stages.loss(stages.params)
        assert model.damping == DAMPING
        assert model.precondition is None
        assert (
            built.damping_products,
            built.preconditioner_products,
            built.sample_passes,
        ) == (0, 0, 0)
        assert built.share == 1 and built.batch_product is None
        assert not built.is_summed

    def test_a_mask_takes_a_block_of_the_matrix(self):
        stages = Stages(mask=OUT_ONLY)
        built = stages.built()
        whole = dense_hessian(stages.loss, stages.params)
        size = ravel_pytree(stages.params["out"])[0].size
        found = matrix(built.model.product, stages.point().params)
        # "hidden" comes before "out".
        np.testing.assert_allclose(found, whole[-size:, -size:], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("count", [0, 1])
    def test_a_sample_is_every_second_example(self, count):
        stages = Stages(sampling=ncg.sampling(1 / 2, min_examples=1))
        stages.state = stages.state._replace(count=jnp.asarray(count, jnp.int32))
        built = stages.built()
        half = on_examples(stages.loss, slice(count, None, 2))
        np.testing.assert_allclose(
            matrix(built.model.product, stages.params),
            dense_hessian(half, stages.params),
            rtol=1e-12,
            atol=1e-12,
        )
        assert built.share == built.sample.share == built.sample_passes == 0.5
        np.testing.assert_allclose(built.sample_loss, half(stages.params), rtol=1e-14)
        # The loss and the gradient are those of the whole batch.
        np.testing.assert_allclose(built.loss, stages.loss(stages.params), rtol=1e-14)
        assert_trees_equal(built.model.gradient, stages.grads)

    @pytest.mark.parametrize("grown", [False, True])
    def test_a_grown_sample_is_the_whole_batch(self, grown):
        stages = Stages(sampling=ncg.sampling(1 / 2, min_examples=1, grow_below=0.5))
        sample = stages.state.sample._replace(grown=jnp.asarray(grown))
        stages.state = stages.state._replace(sample=sample)
        built = stages.built()
        half = on_examples(stages.loss, slice(0, None, 2))
        of_batch = dense_hessian(stages.loss, stages.params)
        of_sample = dense_hessian(half, stages.params)
        np.testing.assert_allclose(
            matrix(built.model.product, stages.params),
            of_batch if grown else of_sample,
            rtol=1e-12,
            atol=1e-12,
        )
        assert built.share == (1.0 if grown else 0.5)
        assert built.batch_product is not None
        np.testing.assert_allclose(
            matrix(built.batch_product, stages.params),
            of_batch,
            rtol=1e-12,
            atol=1e-12,
        )

    def test_a_given_batch_for_the_curvature(self):
        stages = Stages()
        rows = slice(0, 3)
        part = on_examples(stages.loss, rows)
        built = stages.built(curvature_batch=dict(part.data))
        np.testing.assert_allclose(
            matrix(built.model.product, stages.params),
            dense_hessian(part, stages.params),
            rtol=1e-12,
            atol=1e-12,
        )
        assert built.share == 0.5

    @pytest.mark.parametrize("given", [False, True])
    def test_what_is_given_or_is_the_whole_batch_does_not_grow(self, given):
        share = 1 / 2 if given else 1.0
        stages = Stages(sampling=ncg.sampling(share, min_examples=1, grow_below=0.5))
        part = dict(on_examples(stages.loss, slice(0, 3)).data)
        built = stages.built(curvature_batch=part if given else None)
        assert built.batch_product is None and built.share == share

    def test_calibrated_damping_takes_one_product(self):
        rule = ncg.levenberg_marquardt(calibration=1e-2)
        stages = Stages(damping=rule)
        built = stages.built()
        g = flat(stages.grads)
        h = dense_hessian(stages.loss, stages.params)
        expected = 1e-2 * np.linalg.norm(h @ g) / np.linalg.norm(g)
        np.testing.assert_allclose(built.model.damping, expected, rtol=1e-12)
        assert built.damping_products == 1
        assert built.damping.damping == built.model.damping

    def test_the_preconditioner_gets_the_product_and_the_damping(self):
        class exact(ncg.preconditioners.Preconditioner):  # noqa: N801
            def init(self, params):
                return jnp.zeros((13, 13))

            def update(self, state, product, grads, damping, key, count):
                columns = [product(unravel(e)) for e in jnp.eye(13)]
                return jnp.stack([ravel_pytree(c)[0] for c in columns], axis=1), 13

            def apply(self, state, r, damping):
                a = state + damping * jnp.eye(13)
                return unravel(jnp.linalg.solve(a, ravel_pytree(r)[0]))

        stages = Stages(preconditioner=exact())
        unravel = ravel_pytree(stages.params)[1]
        built = stages.built()
        a = dense_hessian(stages.loss, stages.params) + DAMPING * np.eye(13)
        np.testing.assert_allclose(
            flat(built.model.precondition(stages.grads)),
            np.linalg.solve(a, flat(stages.grads)),
            rtol=1e-10,
        )
        assert built.preconditioner_products == 13 and built.preconditioner_share == 1.0


class OneModel(ncg.solvers.Solver):
    """Conjugate gradients that keep the model they were given."""

    def __init__(self, seen):
        self.seen = seen

    def solve(self, model, state):
        self.seen.append(model)
        return EXACT.solve(model, EXACT.init(model.gradient))[0], state


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_solver_gets_one_model_with_the_parameters_as_they_are(dtype):
    seen = []
    stages = Stages(dtype, solver=OneModel(seen))
    stages.direction()
    [model] = seen
    assert dtypes(model.params) == {dtype}
    assert_trees_equal(model.params, stages.params)
    # The point, the loss and the objective are of one another.
    at_params = model.objective.value(model.params).astype(model.loss.dtype)
    assert model.loss == at_params == stages.loss(stages.params)


class returns(ncg.solvers.Solver):  # noqa: N801
    """A multiple of the gradient, with the model's decrease along it."""

    def __init__(self, factor, **settings):
        self.factor = factor
        vars(self).update(settings)

    def solve(self, model, state):
        d = jax.tree.map(lambda g: self.factor * g, model.gradient)
        decrease = -_dot(model.gradient, d) - 0.5 * _dot(d, model.damped_product(d))
        result, _ = EXACT.solve(model, EXACT.init(model.gradient))
        return result._replace(solution=d, model_decrease=decrease), state


def _dot(a, b):
    return ravel_pytree(a)[0] @ ravel_pytree(b)[0]


class TestFindDirection:
    def test_solves_the_damped_system(self):
        stages = Stages()
        direction = stages.direction()
        h, g = dense_hessian(stages.loss, stages.params), flat(stages.grads)
        d = np.linalg.solve(h + DAMPING * np.eye(13), -g)
        assert np.linalg.eigvalsh(h)[0] > -DAMPING
        np.testing.assert_allclose(flat(direction.d), d, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(direction.slope, g @ d, rtol=1e-10)
        np.testing.assert_allclose(direction.bend, d @ h @ d, rtol=1e-8)
        assert direction.usable and not direction.fell_back
        assert direction.damping == DAMPING

    @pytest.mark.parametrize(
        ("factor", "settings", "falls_back"),
        [
            (1.0, {}, True),  # uphill
            (0.0, {}, True),
            (np.nan, {}, True),
            (-1e-6, {}, False),
            (-1e-6, {"descent_threshold": 1.0}, True),
            (1.0, {"may_ascend": True}, False),
        ],
    )
    def test_falls_back_to_the_gradient(self, factor, settings, falls_back):
        linesearch = ncg.safeguard()
        stages = Stages(solver=returns(factor, **settings), linesearch=linesearch)
        direction = stages.direction()
        h, g = dense_hessian(stages.loss, stages.params), flat(stages.grads)
        d = -g if falls_back else factor * g
        np.testing.assert_allclose(flat(direction.d), d, rtol=1e-14)
        np.testing.assert_allclose(direction.slope, g @ d, rtol=1e-12)
        bend = 0.0 if falls_back else d @ h @ d
        np.testing.assert_allclose(direction.bend, bend, rtol=1e-6, atol=1e-15)
        assert direction.fell_back == falls_back
        assert direction.usable

    def test_a_direction_that_is_not_finite_cannot_be_used(self):
        solver = returns(np.nan, may_ascend=True)
        direction = Stages(solver=solver, linesearch=ncg.safeguard()).direction()
        assert not direction.usable
        np.testing.assert_array_equal(flat(direction.d), np.zeros(13))
        assert direction.bend == 0

    def test_a_summed_loss_cannot_be_used(self):
        stages = Stages()
        built = stages.built()._replace(is_summed=jnp.asarray(True))
        assert not stages.direction(built).usable

    def test_the_damping_that_a_solver_chose_counts(self):
        class chooses(ncg.solvers.Solver):  # noqa: N801
            def solve(self, model, state):
                model = model._replace(damping=jnp.asarray(7.0))
                result, _ = EXACT.solve(model, EXACT.init(model.gradient))
                return result._replace(damping=model.damping), state

        stages = Stages(solver=chooses())
        direction = stages.direction()
        h, g = dense_hessian(stages.loss, stages.params), flat(stages.grads)
        d = np.linalg.solve(h + 7.0 * np.eye(13), -g)
        np.testing.assert_allclose(flat(direction.d), d, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(direction.bend, d @ h @ d, rtol=1e-8)
        assert direction.damping == 7.0

    def test_the_sample_is_compared_with_the_batch_along_the_direction(self):
        stages = Stages(sampling=ncg.sampling(1 / 2, min_examples=1, grow_below=0.5))
        direction = stages.direction()
        d = flat(direction.d)
        half = on_examples(stages.loss, slice(0, None, 2))
        of_sample = d @ dense_hessian(half, stages.params) @ d
        of_batch = d @ dense_hessian(stages.loss, stages.params) @ d
        assert of_sample > 0 and of_batch > 0
        np.testing.assert_allclose(
            direction.sample.agreement, of_sample / of_batch, rtol=1e-6
        )
        assert direction.agreement_products == 1
        assert direction.sample.grown == (of_sample / of_batch < 0.5)


class TestTryStep:
    def test_a_full_step(self):
        stages = Stages()
        direction = stages.direction()
        trial = stages.trial(direction)
        h, g, d = (
            dense_hessian(stages.loss, stages.params),
            flat(stages.grads),
            flat(direction.d),
        )
        before = stages.loss(stages.params)
        after = stages.loss(jax.tree.map(jnp.add, stages.params, direction.d))
        assert trial.status == Status.ACCEPTED
        assert trial.outcome.accepted and trial.outcome.step_size == 1
        np.testing.assert_allclose(trial.search.loss, after, rtol=1e-14)
        np.testing.assert_allclose(
            trial.outcome.actual_reduction, before - after, rtol=1e-12
        )
        np.testing.assert_allclose(
            trial.outcome.predicted_reduction, -(g @ d + d @ h @ d / 2), rtol=1e-8
        )

    def test_a_step_without_decrease_is_rejected(self):
        stages = Stages(linesearch=ncg.armijo(maxiter=3))
        direction = stages.direction()
        uphill = direction._replace(d=jax.tree.map(jnp.negative, direction.d))
        trial = stages.trial(uphill)
        assert trial.status == Status.REJECTED_NO_DECREASE
        assert trial.search.evaluations == 3
        assert trial.search.loss == stages.loss(stages.params)
        outcome = trial.outcome
        assert not outcome.accepted and outcome.step_size == 0
        assert outcome.actual_reduction == outcome.predicted_reduction == 0

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"usable": False}, Status.REJECTED_NON_FINITE),
            ({"fell_back": True}, Status.STEEPEST_DESCENT),
        ],
    )
    def test_the_status_of_a_direction(self, changes, status):
        stages = Stages()
        direction = stages.direction()
        changes = {k: jnp.asarray(v) for k, v in changes.items()}
        assert stages.trial(direction._replace(**changes)).status == status

    def test_a_zero_gradient_has_its_own_status(self):
        stages = Stages()
        stages.grads = jax.tree.map(jnp.zeros_like, stages.grads)
        trial = stages.trial(stages.direction())
        assert trial.status == Status.ZERO_GRADIENT
        assert stages.direction().slope == 0

    def test_without_a_line_search_the_loss_is_not_evaluated(self):
        stages = Stages(linesearch=None)
        trial = stages.trial(stages.direction())
        assert trial.status == Status.NOT_EVALUATED
        assert trial.search.evaluations == 0 and trial.outcome.step_size == 1

    def test_the_rise_on_the_sample_counts_on_top_of_the_loss_of_the_batch(self):
        stages = Stages(
            linesearch=ncg.safeguard(),
            sampling=ncg.sampling(1 / 2, min_examples=1),
        )
        direction = stages.direction()
        trial = stages.trial(direction)
        half = on_examples(stages.loss, slice(0, None, 2))
        moved = jax.tree.map(jnp.add, stages.params, direction.d)
        expected = stages.loss(stages.params) + half(moved) - half(stages.params)
        assert trial.search.evaluations == 1 and trial.search.share == 0.5
        np.testing.assert_allclose(trial.search.loss, expected, rtol=1e-13)

    def test_a_search_on_the_whole_batch_ignores_the_sample(self):
        stages = Stages(sampling=ncg.sampling(1 / 2, min_examples=1))
        direction = stages.direction()
        trial = stages.trial(direction)
        moved = jax.tree.map(jnp.add, stages.params, direction.d)
        assert trial.search.share == 1.0
        np.testing.assert_allclose(trial.search.loss, stages.loss(moved), rtol=1e-13)


class TestNextState:
    def test_prices_are_added_up(self):
        stages = Stages()
        built, direction = stages.built(), stages.direction()
        trial = stages.trial(direction)
        built = built._replace(
            share=0.5,
            sample=built.sample._replace(share=0.25),
            damping_products=1,
            preconditioner_products=8,
            preconditioner_share=0.125,
            sample_passes=0.375,
        )
        direction = direction._replace(
            result=direction.result._replace(products=6, evaluations=4),
            agreement_products=2,
        )
        trial = trial._replace(
            search=trial.search._replace(evaluations=3, share=0.75),
            # A direction that ascends.
            outcome=trial.outcome._replace(
                predicted_reduction=-0.5, actual_reduction=-0.25
            ),
        )
        info = stages.next_state(built, direction, trial).info
        assert info.products == 6 + 1 + 8 + 2
        assert info.evaluations == 3 + 4
        batch_products = 0.5 * 6 + 0.25 * 1 + 0.125 * 8 + 2
        batch_evaluations = 0.75 * 3 + 0.25 * 4 + 0.375
        assert info.batch_products == batch_products
        assert info.batch_evaluations == batch_evaluations
        np.testing.assert_allclose(
            info.gradient_equivalents,
            1 + 1.5 * batch_products + batch_evaluations / 3,
            rtol=1e-15,
        )
        assert info.curvature_share == 0.5 and info.reduction_ratio == 0.5

    def test_what_was_measured(self):
        stages = Stages()
        built, direction = stages.built(), stages.direction()
        trial = stages.trial(direction)
        info = stages.next_state(built, direction, trial).info
        h, g, d = (
            dense_hessian(stages.loss, stages.params),
            flat(stages.grads),
            flat(direction.d),
        )
        np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(g), rtol=1e-13)
        np.testing.assert_allclose(info.curvature, d @ h @ d / (d @ d), rtol=1e-8)
        np.testing.assert_allclose(
            info.reduction_ratio,
            (info.loss - info.next_loss) / -(g @ d + d @ h @ d / 2),
            rtol=1e-8,
        )
        residual = np.linalg.norm(h @ d + DAMPING * d + g) / np.linalg.norm(g)
        assert residual < 1e-12 and info.residual < 1e-12
        assert info.status == Status.ACCEPTED and info.damping == DAMPING

    def test_a_rejected_step(self):
        stages = Stages(
            damping=ncg.levenberg_marquardt(initial=DAMPING, increase=4.0),
            solver=ncg.cg(warm_start=0.9),
            linesearch=ncg.armijo(maxiter=1),
        )
        built, direction = stages.built(), stages.direction()
        assert np.any(flat(direction.solver.previous))
        uphill = direction._replace(d=jax.tree.map(jnp.negative, direction.d))
        trial = stages.trial(uphill)
        state = stages.next_state(built, uphill, trial)
        assert state.info.status == Status.REJECTED_NO_DECREASE
        assert state.count == 1
        assert state.damping.damping == 4.0**2 * DAMPING
        np.testing.assert_array_equal(flat(state.solver.previous), np.zeros(13))
        updates = scaled_updates(
            stages.grads, stages.params, stages.point(), uphill, trial
        )
        np.testing.assert_array_equal(flat(updates), np.zeros(13))

    def test_updates_are_minus_the_step_on_the_trained_leaves(self):
        stages = Stages(mask=OUT_ONLY)
        direction = stages.direction()
        trial = stages.trial(direction)
        step = jnp.asarray(0.25)
        trial = trial._replace(outcome=trial.outcome._replace(step_size=step))
        updates = scaled_updates(
            stages.grads, stages.params, stages.point(), direction, trial
        )
        assert jax.tree.structure(updates) == jax.tree.structure(stages.params)
        np.testing.assert_array_equal(flat(updates["hidden"]), np.zeros(9))
        np.testing.assert_array_equal(flat(updates["out"]), -0.25 * flat(direction.d))

    def test_types_of_the_state_and_the_updates_stay(self):
        stages = Stages(jnp.bfloat16)
        direction = stages.direction()
        trial = stages.trial(direction)
        state = stages.next_state(stages.built(), direction, trial)
        types = [jax.tree.map(jax.typeof, x) for x in (state, stages.state)]
        assert types[0] == types[1]
        updates = scaled_updates(
            stages.grads, stages.params, stages.point(), direction, trial
        )
        assert dtypes(updates) == {"bfloat16"}


def test_an_update_is_the_five_stages():
    tx = ncg.scale_by_newton_cg(damping=DAMPING, solver=EXACT)
    stages = Stages()
    updates, state = tx.update(
        stages.grads, tx.init(stages.params), stages.params, value_fn=stages.loss
    )
    built, direction = stages.built(), stages.direction()
    trial = stages.trial(direction)
    assert_trees_equal(state, stages.next_state(built, direction, trial))
    assert_trees_equal(
        updates,
        scaled_updates(stages.grads, stages.params, stages.point(), direction, trial),
    )
