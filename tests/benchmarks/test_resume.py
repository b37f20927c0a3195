"""Runs that are interrupted go on; tuning by validation; what becomes of examine."""

import itertools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.peers import COMPETITORS, Problem, Setting
from benchmarks.reports import curves as plots
from benchmarks.reports import poster
from benchmarks.scenarios import SCENARIOS, Dataset, Scenario
from benchmarks.scenarios._networks import (
    dense,
    half_mean_squared_error,
    initialiser,
    r_squared,
)
from benchmarks.training import competition, resume, tuning
from benchmarks.training.resume import Checkpoint, Journal
from benchmarks.training.run import Curve, Run, compile_method, train

RUNNER = CliRunner()
BUDGET = 6.0
NEVER = 1e9


def invoke(*args):
    result = RUNNER.invoke(app, [str(arg) for arg in args], env={"TERM": "dumb"})
    result.words = " ".join(result.output.split())
    return result


def load():
    x = jax.random.normal(jax.random.key(1), (64, 3))
    data = {"x": x, "y": jnp.sin(x[:, :2])}
    return Dataset(data, jax.tree.map(lambda leaf: leaf[:20], data), "sines, not tides")


TOY = Scenario(
    name="toy",
    description="a network of 22 weights",
    load=load,
    init=initialiser(3, 4, 2),
    model=dense,
    loss=half_mean_squared_error,
    metric=r_squared,
    metric_name="R²",
    budget=BUDGET,
    batch_sizes=(16,),
)


def problem(scenario=TOY, budget=BUDGET):
    data = scenario.load()
    return Problem(scenario, data.train, data.held_out, budget)


@pytest.fixture
def toy(monkeypatch):
    """The scenario `toy`, by itself on the command line."""

    def register(**changes):
        monkeypatch.setitem(SCENARIOS, "toy", TOY._replace(**changes))

    register()
    monkeypatch.setattr(plots, "plot", lambda records, path: path)  # takes its time
    return register


@pytest.fixture
def always(monkeypatch):
    """Checkpoints of every step."""
    monkeypatch.setattr(resume, "INTERVAL", 0.0)


class StopError(Exception):
    """What interrupts a run."""


def stop(calls):
    """Interrupts a run at so many points of its curve."""
    seen = []

    def progress(units):
        seen.append(units)
        if len(seen) == calls:
            raise StopError

    return progress


# One run


def interrupted(compiled, known, folder, say=lambda text: None):
    """A run that was stopped and went on to its end; and the units it went on from."""
    checkpoint = Checkpoint(folder)
    with pytest.raises(StopError):
        train(compiled, known, 1, 0.01, progress=stop(3), checkpoint=checkpoint)
    seen = []
    checkpoint = Checkpoint(folder, say)
    run = train(compiled, known, 1, 0.01, progress=seen.append, checkpoint=checkpoint)
    return run, seen[0]


@pytest.mark.parametrize(
    ("name", "x64", "budget"),
    [
        ("adam_minibatch", True, BUDGET),  # as wide as before
        ("lbfgs", False, 20.0),
        pytest.param("stochastic_hessian_free", False, 200.0, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_continues_bit_for_bit(name, x64, budget, always, tmp_path):
    with jax.enable_x64(x64):
        known = problem(budget=budget)
        method = COMPETITORS[name].build(known, Setting(16, "cosine", 0))
        compiled = compile_method(method, known)
        whole, said = train(compiled, known, 1, 0.01), []
        run, first = interrupted(compiled, known, tmp_path / "run", said.append)
    assert said == ["goes on from its checkpoint"]
    assert first in whole.curve.units[1:-1]
    for column in ("steps", "units", "loss"):
        assert getattr(run.curve, column) == getattr(whole.curve, column)
    assert run.held_out_loss == whole.held_out_loss
    jax.tree.map(np.testing.assert_array_equal, run.params, whole.params)
    assert run.params[0]["w"].dtype == (jnp.float64 if x64 else jnp.float32)
    assert sorted(run.curve.wall_seconds) == run.curve.wall_seconds


@pytest.fixture(scope="module")
def sgd():
    known = problem()
    method = COMPETITORS["sgd"].build(known, Setting(16, "constant", 0))
    return known, compile_method(method, known)


def test_a_short_run_writes_nothing(sgd, tmp_path):
    interrupted(sgd[1], sgd[0], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_kept_every_so_often(sgd, tmp_path, monkeypatch):
    clock = itertools.count(0, 25)  # another 25 seconds whenever it is looked at
    # Of this module alone: others look at the clock as well.
    times = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(resume, "time", times)
    written = []
    monkeypatch.setattr(Checkpoint, "_write", lambda self, a, n: written.append(n[0]))
    train(sgd[1], sgd[0], 0, 0.01, checkpoint=Checkpoint(tmp_path / "run"))
    # Made at 0, looks at 25, 50, 75: saves, the clock says 100, and so on.
    steps = [spent.steps for spent in written]
    assert steps[0] == 3 * sgd[1].method.steps
    assert set(np.diff(steps)) == {3 * sgd[1].method.steps}


def test_seconds_leave_checkpoints_out(sgd, always, tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(resume.time, "perf_counter", lambda: float(sum(passed)))
    monkeypatch.setattr(Checkpoint, "_write", lambda *_: passed.append(100))
    run = train(sgd[1], sgd[0], 0, 0.01, checkpoint=Checkpoint(tmp_path / "run"))
    assert len(passed) > 5
    assert run.curve.wall_seconds[-1] == 0


@pytest.mark.parametrize("damage", ["content", "shape"])
def test_a_checkpoint_that_cannot_be_read_is_no_loss(always, tmp_path, damage):
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.offer({"w": jnp.arange(3.0)}, 1)
    if damage == "content":
        for path in tmp_path.glob("run/1/arrays/*"):
            if path.is_file():
                path.write_bytes(b"")
    begin, said = {"w": jnp.zeros(2 if damage == "shape" else 3)}, []
    checkpoint = Checkpoint(tmp_path / "run", said.append)
    assert checkpoint.restore(begin, 0) == (begin, 0)
    assert said[0].startswith("its checkpoint cannot be read, it begins anew")
    assert not list(tmp_path.iterdir())


def test_a_new_checkpoint_takes_the_place_of_the_old(always, tmp_path):
    # Orbax refuses arrays without entries, which the state of `kronecker` can have.
    empty = jnp.zeros((0, 3))
    begin = {"key": jax.random.key(0), "empty": empty, "count": jnp.int32(0)}
    for count in range(3):
        state = begin | {"key": jax.random.key(count), "count": jnp.int32(count)}
        Checkpoint(tmp_path / "run").offer(state, [count, math.inf])
    arrays, numbers = Checkpoint(tmp_path / "run").restore(begin, None)
    assert arrays["key"] == jax.random.key(2) and arrays["count"] == 2
    assert arrays["empty"].shape == (0, 3)
    assert numbers == [2, math.inf]
    assert len(list(tmp_path.glob("run/*/arrays"))) == 1


def test_a_state_that_cannot_be_stored_ends_no_run(sgd, always, tmp_path):
    known, compiled = sgd
    said = []
    checkpoint = Checkpoint(tmp_path / "run", said.append)
    checkpoint.offer({"w": jnp.zeros(3)}, {1, 2})  # a set, which JSON does not have
    assert len(said) == 1
    assert said[0].startswith("its state cannot be stored, it will not resume")
    run = train(compiled, known, 1, 0.01, checkpoint=checkpoint)
    assert run.curve.units[-1] == BUDGET
    assert len(said) == 1
    assert not list(tmp_path.iterdir())


def test_methods_that_compile_by_themselves_are_not_kept(sgd, always, tmp_path):
    known, compiled = sgd
    own = compiled._replace(method=compiled.method._replace(compiles=True))
    _, first = interrupted(own, known, tmp_path / "run")
    assert first == 0
    assert not list(tmp_path.iterdir())


# The command


def stop_after(monkeypatch, offers):
    """Presses Ctrl-C after so many steps have been offered to a checkpoint."""
    count, offer = [0], Checkpoint.offer

    def counted(self, *args):
        offer(self, *args)
        count[0] += 1
        if count[0] == offers:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "offer", counted)
    return count


SGD = ("run", "toy", "--optimizers", "sgd", "--quick", "--seeds", 2, "--output")
STEPS = 6  # of a run of sgd, and each of three cells and two seeds is one


def stored(folder, name="sgd"):
    return json.loads((folder / "toy" / f"{name}.json").read_text("utf8"))


def results(record):
    """What does not depend on the machine's mood."""
    runs = [
        run | {"curve": [run["curve"][c] for c in ("steps", "units", "loss")]}
        for run in record["runs"]
    ]
    return record["grid"], runs, record["setting"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A command that was not interrupted: what it said, and its record."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCENARIOS, "toy", TOY)
        result = invoke(*SGD, folder)
    assert result.exit_code == 0, result.output
    assert not list(folder.glob("toy/*.partial"))
    return result, stored(folder)


def test_an_interrupted_command_goes_on(toy, whole, always, tmp_path, monkeypatch):
    said = [
        f"toy · sgd: {text}"
        for text in (
            "goes on where it was stopped, after lr 3.2e-03, full batch, constant",
            "lr 3.2e-02, full batch, constant goes on from its checkpoint",
            "goes on where it was stopped, after seed 0",
            "seed 1 goes on from its checkpoint",
        )
    ]
    # In the second cell, and, further on, in the second seed.
    for stop_at, sentences in ((STEPS + 2, []), (3 * STEPS, said[:2])):
        with monkeypatch.context() as patch:
            stop_after(patch, stop_at)
            result = invoke(*SGD, tmp_path)
        assert result.exit_code == 130
        assert all(sentence in result.words for sentence in sentences)
        assert "Stopped: the same command goes on from here." in result.words
        assert [path.name for path in tmp_path.glob("toy/*")] == ["sgd.partial"]
    with monkeypatch.context() as patch:
        count = stop_after(patch, NEVER)
        result = invoke(*SGD, tmp_path)
    assert result.exit_code == 0, result.output
    assert all(sentence in result.words for sentence in said[2:])
    assert count[0] == STEPS - 2  # no step is done twice
    assert not list(tmp_path.glob("toy/*.partial"))
    assert results(stored(tmp_path)) == results(whole[1])


def test_what_an_interrupted_command_finished_is_not_done_again(
    toy, tmp_path, monkeypatch
):
    def both(steps):
        with monkeypatch.context() as patch:
            count = stop_after(patch, steps)
            result = invoke(*SGD[:3], "sgd,adam", *SGD[4:], tmp_path)
        return result.exit_code, count[0]

    assert both(5 * STEPS + 2) == (130, 5 * STEPS + 2)  # in the tuning of adam
    before = stored(tmp_path)
    assert both(NEVER) == (0, 5 * STEPS)  # the cell began anew, of course
    assert stored(tmp_path) == before
    assert not list(tmp_path.glob("toy/*.partial"))
    assert both(1) == (130, 1)  # the command was through: it begins from the start


def test_what_is_left_of_something_else_is_not_continued(toy, tmp_path, monkeypatch):
    def begin(*args):
        with monkeypatch.context() as patch:
            stop_after(patch, STEPS + 1)
            result = invoke(*SGD, tmp_path, *args)
        assert result.exit_code == 130
        return result.words

    begin()
    anew = "toy · sgd: begins anew: the partial record is of another "
    assert f"{anew}budget " in begin("--budget", 5)
    assert f"{anew}budget, tuned_on " in begin("--tune-on", "validation")
    words = begin("--tune-on", "validation", "--fresh")
    assert "anew" not in words and "goes on where" not in words


def test_another_version_is_not_continued(tmp_path):
    folder = tmp_path / "work"
    Journal(folder, {"versions": {"jax": "1"}, "note": "é"}).once("one", lambda _: 1)
    said = []
    other = Journal(folder, {"versions": {"jax": "2"}}, say=said.append)
    assert said == ["begins anew: the partial record is of another versions, note"]
    assert other.once("one", lambda _: 2) == 2


def test_pieces_keep_every_digit_and_infinities(tmp_path):
    values = [0.1 + 0.2, 1e-45, math.inf, None]
    for _ in range(2):
        journal = Journal(tmp_path / "work", {})
        assert journal.once("values", lambda _: values) == values


def test_a_line_for_every_row_and_seed_where_no_bar_moves(whole):
    words = whole[0].words
    assert "toy · sgd: of its row, lr" in words
    assert words.count("toy · sgd: seed 0 has a loss of") == 1
    assert words.count("toy · sgd: seed 1 has a loss of") == 1


def test_the_note_of_the_data_is_stored_and_printed(whole):
    result, record = whole
    assert "Data: sines, not tides" in result.words
    assert record["data"] == "sines, not tides"
    assert record["tuned_on"] == "training"


def test_poster_is_the_scenarios_of_the_posters_rows(toy, tmp_path, monkeypatch):
    row = poster.ROWS[0]._replace(scenarios=("toy",))
    monkeypatch.setattr(poster, "ROWS", (row, row, row._replace(scenarios=())))
    result = invoke("run", "poster", *SGD[2:], tmp_path)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert stored(tmp_path)["command"].startswith("python -m benchmarks run poster ")


# Tuning by validation


def test_a_tenth_of_the_examples_is_set_aside_always_the_same():
    known = problem()
    one, other = tuning.set_aside(known), tuning.set_aside(known)
    jax.tree.map(np.testing.assert_array_equal, one, other._replace(scenario=TOY))
    assert len(one.held_out["y"]) == 6 and one.examples == 58
    rows = {tuple(x) for part in (one.train, one.held_out) for x in part["x"].tolist()}
    assert rows == {tuple(x) for x in known.train["x"].tolist()}
    assert one.budget == known.budget
    few = known._replace(train=jax.tree.map(lambda leaf: leaf[:3], known.train))
    assert len(tuning.set_aside(few).held_out["y"]) == 1


@pytest.mark.parametrize(
    ("validation", "winner"),
    [
        ([0.5, 0.2, 0.4], 1),
        ([0.5, math.nan, 0.4], 2),  # which is worst, not in the way
        ([math.nan, math.inf, 0.4], 2),
        ([0.1, 0.2, 0.3], 1),  # the first one diverged in training
    ],
)
def test_validation_decides(tmp_path, monkeypatch, validation, winner):
    training = [math.nan if validation[0] == 0.1 else 0.3, 0.2, 0.1]
    seen = []

    def fake(compiled, known, seed, rate, points, checkpoint):
        index = len(seen)
        seen.append(known)
        curve = Curve([1], [1.0], [1.0], [1.0], [training[index]])
        return Run(seed, curve, validation[index], 0.0, None)

    monkeypatch.setattr(tuning, "train", fake)
    monkeypatch.setattr(tuning, "compile_method", lambda *_: None)
    known, competitor = problem(), COMPETITORS["sgd"]
    journal = Journal(tmp_path / "work", {})
    tuned = tuning.tune(competitor, known, journal, tuning.Grid.COARSE, validate=True)
    assert tuned.best is tuned.trials[winner]
    assert [k.examples for k in seen] == [58, 58, 58]
    seen.clear()
    journal = Journal(tmp_path / "other", {})
    tuned = tuning.tune(competitor, known, journal, tuning.Grid.COARSE)
    assert tuned.best is tuned.trials[2]
    assert [k.examples for k in seen] == [64, 64, 64]


def test_runs_see_all_examples_and_cells_store_both_losses(toy, tmp_path, monkeypatch):
    seen = []

    def watched(compiled, known, *args, **kwargs):
        seen.append(known.examples)
        return train(compiled, known, *args, **kwargs)

    monkeypatch.setattr(tuning, "train", watched)
    monkeypatch.setattr(competition, "train", watched)
    result = invoke(*SGD, tmp_path, "--tune-on", "validation")
    assert result.exit_code == 0, result.output
    assert seen == [58, 58, 58, 64, 64]
    record = stored(tmp_path)
    assert record["tuned_on"] == "validation"
    assert record["command"].endswith("--quick --tune-on validation")
    best = min(record["grid"], key=lambda cell: cell["validation_loss"])
    assert best["winner"]
    assert all(cell["loss"] != cell["validation_loss"] for cell in record["grid"])
    assert "sgd on toy: validation loss by learning rate" in result.words


def test_examples_that_cannot_be_divided_are_a_sentence(toy, tmp_path):
    toy(batch_sizes=())
    result = invoke(*SGD, tmp_path, "--tune-on", "validation")
    assert result.exit_code == 2
    assert "the examples of toy cannot be divided" in result.output.replace("│", "")
    assert not list(tmp_path.iterdir())


# Examine


def test_examine_sees_the_first_run_once(toy, tmp_path):
    calls = []

    def examine(params, data, stem):
        calls.append((params, data, stem))
        stem.with_name(f"{stem.name}_picture.png").write_bytes(b"")
        return {"bits": jnp.float32(2.5)}

    toy(examine=examine)
    assert invoke(*SGD, tmp_path).exit_code == 0
    ((params, data, stem),) = calls
    record = stored(tmp_path)
    assert stem == tmp_path / "toy" / "sgd"
    assert [run.get("examined") for run in record["runs"]] == [{"bits": 2.5}, None]
    reached = TOY.value(params, **data.train)
    assert float(reached) == pytest.approx(record["runs"][0]["loss"], rel=1e-5)
    assert data.held_out["x"].shape == (20, 3) and data.note


def test_an_examine_that_fails_loses_nothing(toy, tmp_path):
    def examine(params, data, stem):
        raise RuntimeError(f"nothing at [/{stem}]")

    toy(examine=examine)
    result = invoke(*SGD, tmp_path)
    assert result.exit_code == 0, result.output
    assert "toy · sgd: could not be examined: RuntimeError" in result.words
    record = stored(tmp_path)
    assert record["runs"][0]["examined"] == {}
    assert record["runs"][0]["examine_error"] == "RuntimeError"
    assert len(record["runs"]) == 2
    assert str(tmp_path) not in json.dumps(record)
