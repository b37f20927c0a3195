"""The table of mini-batch optimizers, from records that are made up."""

import math

from benchmarks.reports import minibatch


def record(optimizer, loss, held_out, scenario="life"):
    run = {
        "loss": loss,
        "validated": {"units": 1.0, "loss": held_out, "metric": 0.9},
        "curve": {"loss": [1.0, loss]},
    }
    return {
        "scenario": scenario,
        "optimizer": optimizer,
        "budget": 5.0,
        "metric": "R²",
        "runs": [run, run, run],
    }


def group(own, held_out, rivals, scenario="life"):
    records = [record(name, *losses, scenario) for name, losses in rivals.items()]
    return [record("kronecker_adam", own, held_out, scenario), *records]


FIRST = {name: (0.5, 0.6) for name in minibatch.FIRST_ORDER}


def wins(records, rivals=minibatch.FIRST_ORDER, which=0):
    return minibatch.wins(minibatch.grouped(records, records), list(rivals), which)


def test_wins_are_against_the_best_rival():
    assert wins(group(0.4, 0.7, FIRST)) == (1, 1)
    assert wins(group(0.4, 0.7, FIRST), which=1) == (0, 1)
    assert wins(group(0.4, 0.7, FIRST | {"sgd_minibatch": (0.3, 0.8)})) == (0, 1)


def test_losses_that_hardly_differ_are_equal():
    assert wins(group(0.5004, 0.7, FIRST)) == (1, 1)
    assert wins(group(0.51, 0.7, FIRST)) == (0, 1)
    assert wins(group(None, 0.7, FIRST)) == (0, 1)
    assert wins(group(math.inf, 0.7, FIRST)) == (0, 1)


def test_a_problem_without_one_of_the_rivals_is_not_compared():
    few = dict(list(FIRST.items())[1:])
    assert wins(group(0.4, 0.7, few)) == (0, 0)
    both = group(0.4, 0.7, few) + group(0.4, 0.7, FIRST, "boston")
    assert wins(both) == (1, 1)
    alone = [record("adam_minibatch", 0.1, 0.1)]
    assert minibatch.grouped(alone, alone) == {}


def test_the_held_out_losses_are_those_of_the_tuning_by_validation():
    by_training = group(0.4, 0.7, FIRST)
    by_validation = group(9.0, 0.1, {"adam_minibatch": (0.8, 0.65)})
    found = minibatch.grouped(by_training, by_validation)["life"]
    assert {name: pair.losses for name, pair in found.items()} == {
        "kronecker_adam": (0.4, 0.7),  # not tuned
        "adam_minibatch": (0.5, 0.65),
    }
    assert minibatch.wins({"life": found}, ["adam_minibatch"], 1) == (0, 1)


def test_the_table_has_the_lowest_losses_in_bold():
    records = group(0.4, 0.7, FIRST)
    text = minibatch.markdown(minibatch.grouped(records, records))
    row = next(line for line in text.splitlines() if line.startswith("| `life`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "`life`<br>5 gradients, 3 seeds"
    assert cells[1] == "**0.400**<br>0.700<br>R² 0.900"
    assert cells[2] == "0.500<br>**0.600**<br>R² 0.900"
    assert cells[5:] == ["not run"] * 4
    assert "on 1 of 1 problems" in text
    assert text.endswith(minibatch.NOTE)
