"""How much earlier an optimizer was where another one ended."""

import math

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.reports import lead, records


def record(optimizer, seconds, *losses, scenario="boston", budget=3.0):
    curve = {"units": [0.0, 1.0, 2.0, 3.0], "cpu_seconds": [0.0, *seconds]}
    runs = [{"curve": curve | {"loss": list(run)}} for run in losses]
    return {
        "scenario": scenario,
        "optimizer": optimizer,
        "budget": budget,
        "runs": runs,
    }


OURS = record("hessian_free", (2.0, 4.0, 6.0), (9, 5, 1, 0.5), (9, 4, 3, 0.5))
THEIRS = record("adam", (1.0, 5.0, 9.0), (9, 8, 6, 4), (9, 8, 6, 3))


def test_it_is_where_the_median_is_first_as_low():
    (found,) = lead.leads([OURS, THEIRS], "hessian_free")
    assert (found.scenario, found.other, found.level) == ("boston", "adam", 3.5)
    # The medians of ours are 9, 4.5, 2, 0.5; theirs is at 3.5 at its end alone.
    assert (found.units, found.seconds, found.other_seconds) == (2.0, 4.0, 9.0)
    assert found.ratio == 9 / 4


def test_who_never_gets_there_has_no_lead():
    (found,) = lead.leads([OURS, THEIRS], "adam")
    assert math.isinf(found.units) and found.ratio == 0


def test_beside_a_run_that_diverged_it_was_there_from_the_start():
    diverged = record("sgd", (1.0, 2.0, 3.0), (9, 20, None, None))
    (found,) = lead.leads([OURS, diverged], "hessian_free")
    assert found.seconds == 0 and math.isinf(found.ratio)


@pytest.mark.parametrize("other", [{"scenario": "life"}, {"budget": 5.0}])
def test_only_the_same_scenario_and_budget_are_compared(other):
    theirs = record("adam", (1.0, 5.0, 9.0), (9, 8, 6, 4), **other)
    assert lead.leads([OURS, theirs], "hessian_free") == []


def test_the_command_reads_stored_results(tmp_path):
    for item in (OURS, THEIRS):
        records.save(item, tmp_path)
    result = CliRunner().invoke(app, ["lead", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "adam" in result.output and "2.25" in result.output
    result = CliRunner().invoke(app, ["lead", str(tmp_path), "--optimizer", "kfac"])
    assert result.exit_code == 2 and "nothing to compare kfac with" in result.output
