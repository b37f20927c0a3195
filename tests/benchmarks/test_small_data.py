"""The comparison on small data: a tiny run, the table, and a search at its edge."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.small_data import adam, comparison
from benchmarks.small_data.scores import Task
from benchmarks.small_data.sets import SETS


@pytest.mark.parametrize("name", SETS)
def test_splits_are_standardised_and_apart(name):
    data = SETS[name].split(seed=0)
    assert len(data.train["y"]) > 3 * len(data.held_out["y"]) > 0
    np.testing.assert_allclose(data.train["x"].mean(axis=0), 0, atol=1e-4)
    again = SETS[name].split(seed=1)
    assert not np.array_equal(data.train["y"], again.train["y"])


def test_the_training_stops_at_the_lowest_validation_loss():
    x = jnp.linspace(-1, 1, 40)[:, None]
    data = {"x": x, "y": x[:, 0]}
    start = [{"w": jnp.zeros((1, 1)), "b": jnp.ones(1)}]
    task = Task(classes=False)
    settings = jnp.asarray(0.1), jnp.asarray(0.0)
    best, losses = adam._train(task, start, data, data, settings, 0, 30)
    np.testing.assert_allclose(task.loss(best, data), losses.min(), rtol=1e-5)
    assert losses.min() < losses[0]
    third, _ = adam._train(task, start, data, data, settings, 3, 30)
    np.testing.assert_allclose(task.loss(third, data), losses[2], rtol=1e-5)


def test_the_grid_grows_until_the_best_is_inside(monkeypatch):
    def losses(task, params, train, validation, settings, epochs):
        rate, decay = (np.asarray(s) for s in settings)
        distance = np.log10(rate / 0.3) ** 2 + (decay - 1.0) ** 2
        return {"w": rate}, (1 + distance)[:, None]

    monkeypatch.setattr(adam, "_train_grid", losses)
    choice, network = adam.tune(None, None, None, None)
    assert choice.inside and choice.decay == 1.0
    assert choice.rate == pytest.approx(10**-0.5, rel=1e-5)
    assert network["w"] == pytest.approx(choice.rate, rel=1e-5)


def test_the_stopped_network_is_scored_on_held_out_examples(monkeypatch):
    chosen = SETS["diabetes"]

    def tuned(task, start, train, seed, epochs):
        return adam.Choice(0.1, 0.0, 1, validation_loss=-1.0, inside=True), start

    monkeypatch.setattr(comparison, "_tuned", tuned)
    monkeypatch.setattr(adam, "train_again", lambda task, start, *_: start)
    record = comparison.run_split(chosen, 0, epochs=1)
    data = chosen.split(0)
    held_out = Task(False).loss(chosen.init(0, 10), data.held_out)
    assert record["adam_stopped"]["loss"] == pytest.approx(float(held_out))
    assert record["adam_stopped"]["validation_loss"] == -1.0
    assert record["bayesian_fit"]["loss"] < 0.8 < record["adam_again"]["loss"]
    json.dumps(record, allow_nan=False)


def test_table_between_its_marks(tmp_path):
    split = {
        "bayesian_fit": {"loss": 0.1, "seconds": 2.0},
        "adam_stopped": {"loss": 0.2, "seconds": 30.0},
        "adam_again": {"loss": 0.05},
    }
    record = {"command": "c", "versions": {"ncg_optax": "1", "jax": "2"}}
    stored = json.dumps(record | {"sets": {"boston": [split]}})
    (tmp_path / "small_data.json").write_text(stored)
    page = tmp_path / "page.md"
    page.write_text("\n".join(comparison.MARKS))
    options = ["--readme", str(page), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, ["small-data", *options])
    assert done.exit_code == 0, done.output
    row = "| `boston` | 0.1000 | 0.2000 | **0.0500** | 1 and 0 of 1 | 2 | 30 |"
    assert row in page.read_text()
