"""The poster's table: the rule of its marks, its rows, its figures."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.reports import curves as plots
from benchmarks.reports import poster, poster_scaling, records
from benchmarks.reports import poster_figure as poster_plots
from benchmarks.reports import poster_tables as poster_report
from benchmarks.reports import tables as report

RUNNER = CliRunner()
BUDGET = 10.0
DIVERGED = None


def run(losses, seed=0):
    """A run whose budget is spent in equal steps; a second of it is two gradients."""
    units = np.linspace(0, BUDGET, len(losses)).tolist()
    final = losses[-1]
    return {
        "seed": seed,
        "loss": final,
        "held_out_loss": final,
        "held_out_metric": final,
        "curve": {
            "steps": list(range(len(losses))),
            "units": units,
            "cpu_seconds": [value / 2 for value in units],
            "wall_seconds": [value / 4 for value in units],
            "loss": list(losses),
        },
    }


def falling(speed, start=10.0, end=0.0):
    """Falls in a straight line, `speed` times as fast as one that ends in time."""
    progress = np.minimum(np.linspace(0, speed, 101), 1)
    return (start + (end - start) * progress).tolist()


def record(scenario, optimizer, *losses, **more):
    return {
        "scenario": scenario,
        "description": f"what {scenario} is",
        "optimizer": optimizer,
        "budget": BUDGET,
        "quick": False,
        "metric": "accuracy",
        "versions": {"jax": "1", "optax": "2"},
        "machine": {"device": "cpu"},
        "grid": [{}] if optimizer.startswith(("adam", "sgd")) else [],
        "runs": [run(curve, seed) for seed, curve in enumerate(losses)],
    } | more


def marks(**curves):
    """Marks of competitors with a curve, or several, each."""
    runs = {
        name: [run(c) for c in (found if isinstance(found[0], list) else [found])]
        for name, found in curves.items()
    }
    return poster.marks(runs, BUDGET)


def line(*stored, scenario="life"):
    return poster.line(poster.ROWS[0], scenario, stored)


# The rule


@pytest.mark.parametrize(
    ("times", "better", "worse"),
    [(5, "++", "--"), (4, "++", "--"), (3, "+", "-"), (2, "+", "-"), (1.5, "o", "o")],
)
def test_the_marks_of_two_competitors_are_opposite(times, better, worse):
    # The slow one ends where the fast one has been after a part of the budget.
    found = marks(fast=falling(1.0), slow=falling(1 / times))
    assert found == {"fast": better, "slow": worse}


def test_equal_ends_are_told_apart_by_who_was_there_first():
    found = marks(early=falling(5.0), late=falling(1.25, end=1e-4))
    assert found == {"early": "++", "late": "o"}
    # Not by the last digit: whoever it favours, the marks are these.
    found = marks(early=falling(5.0, end=1e-4), late=falling(1.25))
    assert found == {"early": "++", "late": "o"}


def test_rivals_are_compared_with_the_best_of_the_others():
    found = marks(a=falling(1.0), b=falling(1.0), c=falling(0.2))
    assert found == {"a": "o", "b": "o", "c": "--"}


curves = st.lists(st.integers(0, 1000), min_size=4, max_size=4).map(
    lambda tail: [1000.0, *map(float, tail)]
)
fields = st.lists(
    st.lists(curves, min_size=1, max_size=3), min_size=2, max_size=4
)  # competitors, seeds


def of_field(field):
    return list(marks(**{str(i): runs for i, runs in enumerate(field)}).values())


@settings(deadline=None, max_examples=60)
@given(fields, st.randoms(use_true_random=False))
def test_nobody_is_favoured(field, random):
    order = list(range(len(field)))
    random.shuffle(order)
    found = of_field(field)
    assert of_field([field[i] for i in order]) == [found[i] for i in order]


@settings(deadline=None, max_examples=60)
@given(fields, st.sampled_from([2.0**-20, 0.5, 8.0]), st.integers(-3000, 3000))
def test_units_and_offset_of_the_loss_do_not_matter(field, scale, shift):
    other = [
        [[scale * (value + shift) for value in losses] for losses in runs]
        for runs in field
    ]
    assert of_field(other) == of_field(field)


@settings(deadline=None, max_examples=60)
@given(fields, st.data())
def test_whoever_diverges_has_the_worst_mark(field, data):
    index = data.draw(st.integers(0, len(field) - 1))
    field[index][0] = [*field[index][0][:3], DIVERGED]
    assert of_field(field)[index] == "--"


@settings(deadline=None, max_examples=60)
@given(fields)
def test_to_end_lower_never_earns_a_lower_score(field):
    medians = [poster.median_curve([run(c) for c in runs], "units") for runs in field]
    margin = poster.margin(medians)
    best = min(medians, key=lambda curve: curve.end)
    rivals = [curve for curve in medians if curve is not best]
    assert poster.score(best, rivals, BUDGET, margin) >= 1


def test_divergence_at_the_very_end_of_a_stored_file_survives_json(tmp_path):
    stored = record("life", "adam", [10.0, 1.0], [10.0, math.inf])
    path = records.save(stored, tmp_path)
    found = line(records.load(path), record("life", "hessian_free", falling(1.0)))
    assert found.cells["Adam"].mark == "--"
    assert "diverged" in poster_report.loss_text(found.cells["Adam"])


def test_an_unstable_competitor_loses_one_mark():
    steady = marks(a=[falling(1.0)] * 3, b=falling(0.2))
    shaky = marks(a=[falling(1.0), falling(1.0), falling(0.1)], b=falling(0.2))
    assert (steady["a"], shaky["a"]) == ("++", "+")


def test_no_progress_is_the_worst_mark_and_nobody_to_beat_is_none():
    assert marks(a=[10.0, 10.0], b=falling(1.0)) == {"a": "--", "b": "++"}
    assert marks(a=[10.0, 12.0], b=[10.0, 10.0]) == {"a": "--", "b": "--"}
    assert marks(a=falling(1.0)) == {"a": None}


def test_a_step_counts_when_it_is_done():
    # Two long steps: half the descent is there after five gradients, not before.
    found = poster.median_curve([run([10.0, 5.0, 0.0])], "units")
    assert found.reach(9.0) == found.reach(5.0) == 5.0


# From stored results to lines


def test_the_rows_are_those_of_the_poster():
    assert [row.number for row in poster.ROWS] == list(range(1, 12))
    for row in poster.ROWS[:10]:
        assert len(row.poster_marks) == 3
        assert set(row.poster_marks) <= set(poster.MARKS)
        assert row.scenarios
    names = [name for row in poster.ROWS for name in row.scenarios]
    assert len(names) == len(set(names))


def test_the_better_run_of_an_optimizer_stands_for_it():
    found = line(
        record("life", "adam", falling(0.5)),
        record("life", "adam_minibatch", falling(1.0)),
        record("life", "sgd", [10.0, DIVERGED]),
        record("life", "sgd_minibatch", falling(0.5)),
        record("life", "muon", falling(9.0)),
    )
    chosen = {column: c.record["optimizer"] for column, c in found.cells.items()}
    assert chosen == {"Adam": "adam_minibatch", "SGD": "sgd_minibatch"}


def test_costs_are_those_of_reaching_the_better_baseline():
    found = line(
        record("life", "adam", falling(0.5)),
        record("life", "sgd", falling(0.1)),
        record("life", "hessian_free", falling(1.0), falling(1.0), falling(1.0)),
        record("life", "poster", falling(0.2)),
    )
    ours = found.cells["Newton-CG"]
    assert ours.units == pytest.approx(BUDGET / 2)
    assert ours.seconds == pytest.approx(BUDGET / 4)
    assert found.cells["Adam"].units == pytest.approx(BUDGET)
    assert math.isinf(found.cells["the poster's method"].units)
    on_gpu = line(
        *(
            record("life", name, falling(0.5), machine={"device": "a GPU"})
            for name in ("adam", "hessian_free")
        )
    )
    assert on_gpu.cells["Adam"].seconds == pytest.approx(BUDGET / 4)  # the wall clock


def test_without_a_baseline_there_is_no_cost():
    found = line(record("life", "hessian_free", falling(1.0)))
    assert found.cells["Newton-CG"].units is None
    assert poster.summary([found]).compared == 0
    assert "nothing to compare" in poster_report.cost_text(found.cells["Newton-CG"])


def test_different_budgets_are_compared_at_the_smaller_one():
    found = line(
        record("life", "adam", falling(1.0), budget=BUDGET / 2),
        record("life", "hessian_free", falling(1.0)),
    )
    assert found.budget == BUDGET / 2
    assert found.cells["Newton-CG"].loss == pytest.approx((5.0, 5.0, 5.0))
    assert "budgets differ (5, 10)" in found.remark


@pytest.mark.parametrize("quick, coarse", [("adam", True), ("hessian_free", False)])
def test_a_grid_is_coarse_if_what_was_tuned_was_tuned_quickly(quick, coarse):
    found = line(
        *(
            record("life", optimizer, falling(1.0), quick=optimizer == quick)
            for optimizer in ("adam", "hessian_free")
        )
    )
    assert ("coarse tuning grid" in found.remark) == coarse


def test_the_summary_counts_lines():
    ahead = line(
        record("life", "adam", falling(0.5)), record("life", "hessian_free", falling(1))
    )
    behind = line(
        record("life", "adam", falling(0.1)),
        record("life", "sgd", falling(1.0)),
        record("life", "hessian_free", falling(0.5)),
    )
    later = line(
        record("life", "adam", falling(0.1)),
        record("life", "sgd", falling(2.0)),
        record("life", "hessian_free", falling(1.0, end=1e-3)),
    )
    lost = line(
        record("life", "sgd", [10.0, DIVERGED]),
        record("life", "hessian_free", [10.0, DIVERGED]),
    )
    found = poster.summary([ahead, behind, later, lost, line()])
    assert found == poster.Summary(compared=4, loss=2, seconds=1, held_out=1)
    assert "on 2 of 4 problems" in poster_report.headline([ahead, behind, later, lost])
    assert math.isfinite(later.cells["Newton-CG"].seconds)


# What is printed


def printed(lines):
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(poster_report.rich_table(lines))
    return console.export_text()


def test_both_tables_show_every_row_measured_or_not():
    stored = [
        record("life", "adam", falling(0.5), tuned_on="validation", data="a|b [real]"),
        record("life", "hessian_free", falling(1.0)),
    ]
    stored[1]["runs"][0]["examined"] = {"BLEU-4": 12.5}
    lines = poster.lines(stored)
    markdown = poster_report.markdown(lines, poster_scaling.stored())
    for text in (printed(lines), markdown):
        for row in poster.ROWS[:10]:
            assert all(name in text for name in row.scenarios)
        assert "what life is; a" in text and "[real]" in text
        assert "not run" in text
        assert "poster" in text
    assert "BLEU-4 12.5" in printed(lines)
    assert "a\\|b" in markdown
    rows = [part for part in markdown.splitlines() if part.startswith("| 1. ")]
    assert len(rows) == 1
    assert "**`+`** (poster `++`)<br>0 (" in rows[0].replace("< 1e-07", "0")
    assert "not run (poster `--`)" in rows[0]  # SGD
    assert "238, 121, 65, 37 s" in markdown


def test_below_the_table_stands_the_rule_and_what_is_missing():
    stored = [record("life", "adam", falling(0.5), tuned_on="validation")]
    notes = "\n".join(poster_report.notes(poster.lines(stored)))
    assert "++, of 2 or more +" in notes
    assert "diverged on any seed" in notes
    assert "loss on validation data" in notes
    assert "1 Life expectancy, regression (life: SGD, Newton-CG" in notes
    assert "6 Bayesian network, BreakHis (breakhis)" in notes


def test_the_scaling_row_tells_measured_from_predicted_and_from_checked(tmp_path):
    assert [s.what for s in poster_scaling.stored(tmp_path)] == ["the poster, measured"]
    efficiency = poster_scaling.poster().efficiency
    assert efficiency[8][0] == pytest.approx(0.804, abs=5e-4)
    assert efficiency[4][0] == pytest.approx(0.915, abs=5e-4)

    point = {"scaling": "strong", "optimizer": "adam", "batch": 512}
    points = [
        point | {"devices": 1, "efficiency": 1.0},
        point | {"devices": 2, "efficiency": 0.9},
        point | {"devices": 2, "efficiency": 0.1, "scaling": "weak"},
    ]
    timed = {
        "description": "a network",
        "axis": "devices",
        "machine": {"device": "a GPU", "cpu": "a CPU", "cores": 4},
        "labels": [],
        "points": points,
    }
    (tmp_path / "scaling_processes.json").write_text(json.dumps(timed))
    fake = timed | {"labels": ["fake devices"]}
    (tmp_path / "scaling_devices.json").write_text(json.dumps(fake))
    _, checked, measured = poster_scaling.stored(tmp_path)
    assert (checked.what, checked.efficiency) == (
        "adam ran on 1, 2: fake devices", {},
    )  # fmt: skip
    assert "batch 512" in checked.where
    assert measured.what == "adam, batch 512, measured"
    assert "a GPU" in measured.where
    assert [measured.efficiency_text(n) for n in (1, 2, 4)] == ["100 %", "90 %", ""]
    assert poster_scaling.measured(timed | {"points": points[2:]}) == []

    committed = poster_scaling.stored()
    predicted = [s for s in committed if not s.measured]
    assert predicted
    assert all("nothing measured" in s.where for s in predicted)


# Figures


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, kept to be looked at."""
    kept, close = [], plots.plt.close
    monkeypatch.setattr(plots.plt, "close", kept.append)
    yield kept
    for figure in kept:
        close(figure)


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([falling(1.0, 10.0, 0.1)], "log"),
        ([falling(1.0, 10.0, -1e-9)], "log"),  # rounding
        ([falling(1.0, 10.0, -5.0), falling(0.5, 10.0, -5.0)], "linear"),
        ([[1.0, -1.0, DIVERGED], falling(1.0, 1.0, -2.0)], "linear"),
        ([[1.0, 2.0, DIVERGED]], "log"),
        ([[-1.0, DIVERGED]], "linear"),
    ],
)
def test_losses_below_zero_are_drawn_on_a_linear_axis(tmp_path, figures, losses, scale):
    stored = [record("life", name, *losses) for name in ("adam", "hessian_free")]
    plots.plot(stored, tmp_path / "curves.png")
    axes = figures[0].axes
    assert [axis.get_xlabel() for axis in axes] == [
        label for _, label, _ in plots.PANELS
    ]
    assert {axis.get_yscale() for axis in axes} == {scale}
    low, high = axes[0].get_ylim()
    assert low < high
    assert all(low <= curve[0] <= high for curve in losses)
    lines = [line.get_ydata() for axis in axes for line in axis.lines]
    assert lines and all(np.isfinite(line).all() for line in lines)


def test_the_others_go_on_where_one_seed_diverged(figures, tmp_path):
    stored = record("life", "adam", *[falling(1.0, 10.0, 1.0)] * 3, [10.0, 9.0])
    broken = run([10.0, 9.0, DIVERGED])
    broken["curve"]["units"] = [0.0, 1.0, 2.0]
    stored["runs"][3] = broken
    plots.plot([stored], tmp_path / "curves.png")
    (curve,) = figures[0].axes[0].lines
    assert curve.get_xdata()[-1] == BUDGET
    assert curve.get_ydata()[-1] == pytest.approx(1.0)


def test_a_negative_loss_is_not_rounding_in_the_tables():
    table = report.result_table(
        [
            record(
                "life", "adam", falling(1.0, 1.0, -2.5), compile_seconds=1.0, setting=""
            )
        ]
    )
    assert list(table.columns[1].cells) == ["-2.50"]


def test_the_overview_has_a_picture_for_every_line(figures, tmp_path):
    stored = [
        record("life", "adam", falling(0.5, 10.0, 0.1)),
        record("life", "hessian_free", falling(1.0, 10.0, 0.1)),
        record("mnist_vae", "adam_minibatch", falling(0.5, 1.0, -3.0)),
    ]
    lines = poster.lines(stored)
    path = tmp_path / "overview.png"
    poster_plots.overview(lines, poster_scaling.stored(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes
    by_name = dict(zip([line.scenario for line in lines], axes, strict=False))
    assert by_name["life"].get_yscale() == "log"
    assert by_name["mnist_vae"].get_yscale() == "linear"
    texts = {
        name: [text.get_text() for text in axis.texts] for name, axis in by_name.items()
    }
    assert "Newton-CG +" in texts["life"]
    assert f"Adam {poster_plots.MINUS}" in texts["life"]
    assert "not run" in texts["resnet50"]
    scaling = axes[len(lines)]
    assert "8" in [label.get_text() for label in scaling.get_xticklabels()]


# The commands


def invoke(*args):
    env = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    return RUNNER.invoke(app, [str(arg) for arg in args], env=env)


@pytest.fixture
def results(tmp_path):
    """A directory of results with one for each of the tables."""
    main = [record("boston", "adam", falling(0.5, 10.0, 0.25))]
    ours = [
        record("life", "adam", falling(0.5, 10.0, 0.5)),
        record("life", "hessian_free", falling(1.0, 10.0, 0.5)),
    ]
    for stored, folder in ((main, tmp_path), (ours, tmp_path / "poster")):
        for found in stored:
            records.save(found, folder)
    return tmp_path


def marked(path, *pairs):
    path.write_text("\n".join(f"{begin}\nold\n{end}" for begin, end in pairs))
    return path


POSTER_MARKS = poster_report.BEGIN, poster_report.END
MAIN_MARKS = report.BEGIN, report.END


def test_poster_prints_the_table_and_draws_the_figures(results):
    readme = marked(results / "README.md", POSTER_MARKS)
    shown = invoke("poster", results / "poster", "--readme", readme)
    assert shown.exit_code == 0, shown.output
    assert "1 Life expectancy, regression" in shown.stdout
    assert "11 Scaling of ResNet-50" in shown.stdout
    for picture in ("life/curves.png", "overview.png"):
        assert (results / "poster" / picture).exists()
    text = readme.read_text("utf8")
    assert "old" not in text
    assert "| 1. Life expectancy, regression" in text


def test_poster_without_results_says_that_nothing_was_run(tmp_path):
    shown = invoke("poster", tmp_path / "nowhere")
    assert shown.exit_code == 0, shown.output
    assert "Nothing to compare" in shown.stdout
    assert not (tmp_path / "nowhere").exists()


def test_poster_says_what_is_wrong(results):
    readme = marked(results / "README.md", MAIN_MARKS)
    shown = invoke("poster", results / "poster", "--readme", readme, "--no-figures")
    assert shown.exit_code == 2
    assert "poster-table:begin" in shown.output
    (results / "poster" / "life" / "adam.json").write_text("{}")
    shown = invoke("poster", results / "poster", "--no-figures")
    assert shown.exit_code == 2
    assert "is not a result" in shown.output


def test_table_builds_both_tables_and_keeps_them_apart(results):
    readme = marked(results / "README.md", MAIN_MARKS, POSTER_MARKS)
    assert invoke("table", results, "--readme", readme).exit_code == 0
    main, _, rest = readme.read_text("utf8").partition(POSTER_MARKS[0])
    assert "| boston | 10 |" in main and "life" not in main
    assert "`life`" in rest and "| boston | 10 |" not in rest
    shown = invoke("table", results)
    assert "| boston | 10 |" in shown.stdout and "`life`" in shown.stdout


@pytest.mark.parametrize("marks", [MAIN_MARKS, POSTER_MARKS])
def test_table_writes_the_tables_whose_marks_the_file_has(results, marks):
    readme = marked(results / "README.md", marks)
    shown = invoke("table", results, "--readme", readme)
    assert shown.exit_code == 0, shown.output
    assert "old" not in readme.read_text("utf8")
    readme.write_text("no marks")
    shown = invoke("table", results, "--readme", readme)
    assert shown.exit_code == 2 and "begin" in shown.output


def test_table_leaves_the_poster_alone_if_there_is_none(results):
    folder = results / "poster" / "life"
    for path in folder.iterdir():
        path.unlink()
    readme = marked(results / "README.md", MAIN_MARKS, POSTER_MARKS)
    assert invoke("table", results, "--readme", readme).exit_code == 0
    assert "old" in readme.read_text("utf8").partition(POSTER_MARKS[0])[2]
