"""Checkpoints with a card: trained, listed, read again, and refused if damaged."""

import json
import shlex
import sys

import jax
import numpy as np
import pytest
from test_commands import refused
from test_resume import TOY
from typer.testing import CliRunner

from benchmarks import zoo
from benchmarks.commands import app, options
from benchmarks.peers import COMPETITORS, Setting
from benchmarks.scenarios import SCENARIOS


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The scenario ``toy``, and an empty folder of stored results."""
    monkeypatch.setitem(SCENARIOS, "toy", TOY)
    monkeypatch.setattr(options, "COMMITTED", tmp_path / "results")
    return tmp_path / "results"


def store(folder, optimizer, grid, budget=4.0):
    path = folder / "toy" / f"{optimizer}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "scenario": "toy",
        "optimizer": optimizer,
        "budget": budget,
        "grid": grid,
        "runs": [{"curve": {"loss": [1.0]}}],
    }
    path.write_text(json.dumps(record))


def cell(rate, winner=False):
    return {
        "batch": 16, "schedule": "cosine", "learning_rate": rate, "winner": winner
    }  # fmt: skip


def invoke(*args):
    found = CliRunner().invoke(app, list(map(str, args)))
    assert found.exit_code == 0, found.output
    return found.stdout


def test_a_tuned_optimizer_is_trained_with_what_won(results, tmp_path):
    store(results / "poster", "adam_minibatch", [cell(0.1), cell(0.0316228, True)])
    shown = invoke(
        *("train", "toy", "--optimizer", "adam_minibatch"),
        *("--checkpoint", tmp_path / "zoo", "--seed", "3"),
    )
    folder = tmp_path / "zoo" / "toy" / "adam_minibatch"
    assert f"Checkpoint: {folder}" in shown
    params, card = zoo.load(folder)
    assert card["setting"] == str(Setting(16, "cosine", -3))
    assert (card["budget"], card["seed"], card["parameters"]) == (4.0, 3, 26)
    assert card["data"] == "sines, not tides"
    assert card["command"].endswith("adam_minibatch --seed 3 --budget 4")
    assert card["versions"]["jax"] == jax.__version__ and card["machine"]["cores"]
    # The parameters are those that the card is about.
    data = TOY.load()
    assert float(TOY.value(params, **data.train)) == pytest.approx(card["loss"], 1e-4)
    score = TOY.metric(TOY.outputs(params, data.held_out), data.held_out["y"])
    assert float(score) == pytest.approx(card["held_out_metric"], 1e-4)
    assert card["loss"] < float(TOY.value(TOY.init(3), **data.train))


def test_the_list_has_what_there_is_and_what_makes_the_rest(
    results, tmp_path, monkeypatch
):
    entries = [zoo.Entry("toy", "lbfgs", 3.0), zoo.Entry("toy", "hessian_free")]
    monkeypatch.setattr(sys.modules["benchmarks.commands.zoo"], "ENTRIES", entries)
    folder = tmp_path / "zoo"
    line = "  python -m benchmarks train toy --optimizer lbfgs --budget 3"
    line += f" --checkpoint {folder}"
    assert line in invoke("zoo", folder).splitlines()
    invoke(*line.split()[3:])
    assert zoo.load(folder / "toy" / "lbfgs")[1]["budget"] == 3.0
    shown = invoke("zoo", folder)
    digest = zoo.load(folder / "toy" / "lbfgs")[1]["sha256"]
    assert line not in shown and "hessian_free" in shown and digest[:12] in shown


def test_every_entry_of_the_zoo_can_be_trained():
    for entry in zoo.ENTRIES:
        assert COMPETITORS[entry.optimizer].fits(SCENARIOS[entry.scenario])
        found = zoo.setting_of(entry.scenario, entry.optimizer, options.COMMITTED)
        assert (found is None) == (not COMPETITORS[entry.optimizer].exponents)


def test_what_cannot_be_trained_is_one_line(results, tmp_path):
    train = ["train", "toy", "--checkpoint", tmp_path / "zoo", "--optimizer"]
    assert "no tuning is stored" in refused([*train, "adam"])
    assert "toy is not for kfac" in refused([*train, "kfac"])
    assert "did you mean 'adam'?" in refused([*train, "adma"])
    (tmp_path / "zoo").write_text("")
    assert "--checkpoint" in refused([*train, "lbfgs"])
    assert "is a file, not a folder" in refused(["zoo", tmp_path / "zoo"])


def test_the_commands_of_the_list_can_be_pasted(results, tmp_path):
    lines = invoke("zoo", tmp_path / "my zoo").splitlines()[1:]
    assert all(shlex.split(line)[-1] == str(tmp_path / "my zoo") for line in lines)


def save(folder, params):
    card = {"scenario": "toy", "optimizer": "adam", "held_out_metric": 0.5}
    return zoo.save(params, card, folder)


def test_it_is_read_bit_for_bit(results, tmp_path):
    params = TOY.init(1)
    card = save(tmp_path, params)
    found, again = zoo.load(tmp_path)
    assert card == again and again["sha256"] == zoo.digest(found)
    for one, other in zip(*map(jax.tree.leaves, (params, found)), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    save(tmp_path, TOY.init(2))  # in place of the first one
    assert zoo.load(tmp_path)[1]["sha256"] != card["sha256"]


def test_other_parameters_than_the_card_says_are_refused(results, tmp_path):
    card = save(tmp_path / "one", TOY.init(1))
    save(tmp_path / "two", TOY.init(2))
    with pytest.raises(ValueError, match="another SHA-256"):
        (tmp_path / "two" / "card.json").write_text(json.dumps(card))
        zoo.load(tmp_path / "two")
    with pytest.raises(ValueError, match="cannot be read"):
        (tmp_path / "one" / "params").rename(tmp_path / "gone")
        zoo.load(tmp_path / "one")
    with pytest.raises(ValueError, match="no card"):
        zoo.load(tmp_path / "gone")
    (tmp_path / "one" / "card.json").write_text(json.dumps(card | {"scenario": "toi"}))
    with pytest.raises(ValueError, match="no scenario 'toi'"):
        zoo.load(tmp_path / "one")


def test_the_digest_is_of_names_types_shapes_and_numbers():
    def of(**params):
        return zoo.digest({k: np.asarray(v, np.float32) for k, v in params.items()})

    one = of(w=[1.0, 2.0])
    assert one == of(w=[1.0, 2.0])
    others = {of(v=[1.0, 2.0]), of(w=[[1.0, 2.0]]), of(w=[1.0, 2.5])}
    others.add(zoo.digest({"w": np.asarray([1.0, 2.0])}))
    assert len({one, *others}) == 5
