"""The table of what each part of kronecker_adam buys, from records that are made up."""

from benchmarks.peers import COMPETITORS
from benchmarks.reports import ablation


def record(optimizer, loss, held_out, rate=None):
    run = {"loss": loss, "validated": {"loss": held_out}}
    cells = [(0.3 * rate, False), (rate, True)] if rate else []
    return {
        "scenario": "life",
        "optimizer": optimizer,
        "budget": 5.0,
        "grid": [{"learning_rate": r, "winner": winner} for r, winner in cells],
        "runs": [run, run, run],
    }


OWN = record("kronecker_adam", 0.4, 0.7)


def test_the_changes_stand_beside_the_preset():
    tuned = record("kronecker_adam_tuned", 0.3, 0.8, rate=0.01)
    other = record("adam_minibatch", 0.1, 0.1)
    text = ablation.markdown(ablation.grouped([OWN, tuned, other]))
    row = next(line for line in text.splitlines() if line.startswith("| `life`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "`life`<br>5 gradients, 3 seeds"
    assert cells[1] == "0.400<br>**0.700**"
    assert cells[2:] == [
        "not run",
        "not run",
        "not run",
        "**0.300**<br>0.800<br>rate 0.0100",
        "not run",
    ]
    assert text.endswith(ablation.NOTE)


def test_a_problem_needs_both():
    assert ablation.grouped([OWN]) == {}
    assert ablation.grouped([record("kronecker_adam_last", 0.4, 0.7)]) == {}


def test_every_change_can_be_run_and_only_by_its_name():
    assert all(COMPETITORS[name].named_only for name in ablation.CHANGES)
