import io
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest
import rich.console

import ncg_optax as ncg
from ncg_optax import Status, watch


def an_info(**numbers):
    """A made-up info of a step, or of several."""
    usual = dict(
        status=Status.ACCEPTED,
        solver_status=Status.RESIDUAL_CONVERGED,
        loss=2.5,
        gradient_norm=0.5,
        damping=1e-3,
        cg_iterations=4,
        products=5,
        evaluations=1,
        reduction_ratio=0.9,
        step_size=1.0,
        curvature=0.1,
    )
    empty = ncg.get_info(ncg.newton_cg().init(jnp.ones(2)))
    given = empty._replace(**usual | numbers)
    arrays = [np.asarray(x, y.dtype) for x, y in zip(given, empty, strict=True)]
    return ncg.step.NewtonCGInfo(*np.broadcast_arrays(*arrays))


def one(infos, k):
    return jax.tree.map(lambda x: x[k], infos)


# A dictionary for loggers.


def test_to_dict_holds_every_number_as_a_float():
    info = an_info(loss=jnp.float32(1.25))
    numbers = watch.to_dict(info)
    assert list(numbers) == list(ncg.step.NewtonCGInfo._fields)
    assert {type(x) for x in numbers.values()} == {float}
    assert numbers["loss"] == 1.25 and numbers["status"] == float(Status.ACCEPTED)
    assert json.loads(json.dumps(numbers)) == numbers


def test_to_dict_takes_prefixes_words_and_states():
    state = optax.chain(ncg.scale_by_newton_cg(), optax.scale(-1.0)).init(jnp.ones(2))
    numbers = watch.to_dict(state, prefix="newton/", words=True)
    assert all(name.startswith("newton/") for name in numbers)
    assert numbers["newton/status_name"] == "NOT_STARTED"
    assert numbers["newton/solver_status_name"] == "NOT_STARTED"
    assert len(numbers) == len(ncg.step.NewtonCGInfo._fields) + 2


def test_to_dict_is_one_transfer(monkeypatch):
    transfers, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: transfers.append(x) or get(x))
    watch.to_dict(jax.tree.map(jnp.asarray, an_info()))
    assert len(transfers) == 1


def test_to_dict_refuses_what_is_not_one_step():
    with pytest.raises(ValueError, match=r"to_dict takes .* one step, got 3.*x\[-1\]"):
        watch.to_dict(an_info(loss=[1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="got 0 of them in a dict"):
        watch.to_dict({"params": 1.0})
    with pytest.raises(TypeError, match="watch.to_dict reads .*jax.debug.callback"):
        jax.jit(watch.to_dict)(an_info())


# The live table.


def table_of(states, width=80, colours=False, **settings):
    console = rich.console.Console(
        file=io.StringIO(), width=width, force_terminal=colours, legacy_windows=False
    )
    with watch.live_table(console=console, **settings) as show:
        for state in states:
            show(state)
    return console.file.getvalue()


def first_words(text):
    words = [line.split()[0] for line in text.splitlines() if line.split()]
    return [int(word) for word in words if word.isdigit()]


def test_the_table_shows_the_numbers_in_words_of_the_last_steps():
    infos = an_info(
        loss=[3.0, 2.0, 1.0],
        status=[Status.ACCEPTED, Status.ACCEPTED, Status.SHORTENED],
        step_size=[1.0, 1.0, 0.25],
    )
    text = table_of([one(infos, k) for k in range(3)], rows=2)
    assert first_words(text) == [2, 3]
    for heading in ("step", "loss", "gradient", "damping", "ratio", "status"):
        assert heading in text.splitlines()[0]
    last = "3 1.0000e+00 5.00e-01 1.0e-03 4 5 0.90 0.25 shortened solved"
    assert last in " ".join(text.split())
    assert ncg.explain(Status.SHORTENED) in " ".join(text.split())


def test_the_table_counts_what_it_skips():
    assert first_words(table_of([an_info()] * 7, every=3)) == [3, 6]
    skipped = {"not": "looked at"}
    assert first_words(table_of([skipped, an_info()], every=2)) == [2]


@pytest.mark.parametrize("status", [s for s in Status if s < 40 and s != 1])
def test_the_table_has_words_for_every_status_and_fits_a_terminal(status):
    long = an_info(
        status=status,
        solver_status=status,
        loss=-1.23456e-100,
        reduction_ratio=-12.3456,
        step_size=1.23456e-5,
        cg_iterations=200,
        products=2000,
    )
    text = table_of([long])
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    # A word for each, not the bare code.
    assert len(re.findall(rf" {int(status)}(?= |$)", text.splitlines()[1])) == 0


def test_what_was_not_measured_is_a_dash_and_rejected_steps_are_red():
    assert " - " in table_of([an_info(evaluations=0)])
    rejected = an_info(status=Status.REJECTED_NO_DECREASE)
    assert "\x1b[31mrejected" in table_of([rejected], colours=True)


def test_the_table_works_in_a_callback():
    console = rich.console.Console(file=io.StringIO(), width=80)

    @jax.jit
    def step(info):
        jax.debug.callback(show, info)
        return info.loss + 1

    with watch.live_table(console=console) as show:
        step(an_info())
        jax.effects_barrier()
    assert first_words(console.file.getvalue()) == [1]


def test_the_table_refuses_wrong_settings():
    for setting in ("rows", "every"):
        context = watch.live_table(**{setting: 0})
        with pytest.raises(ValueError, match=f"{setting} must be an integer of at"):
            context.__enter__()


# The plot.


def draw(figure):
    figure.savefig(io.BytesIO(), dpi=30)
    return {axes.get_title(): axes for axes in figure.axes}


STATUSES = [Status.ACCEPTED, Status.REJECTED_NO_DECREASE, Status.SHORTENED] * 2


def test_the_plot_draws_the_numbers():
    infos = an_info(
        loss=np.geomspace(1.0, 0.1, 6),
        damping=np.geomspace(1e-3, 1.0, 6),
        status=STATUSES,
        step_size=[1.0, 0.0, 0.25] * 2,
        reduction_ratio=[1.0, 0.0, -3.0, 0.5, 0.0, 9.0],
        evaluations=[1, 20, 3, 0, 20, 3],
        products=np.arange(6),
    )
    figure = watch.plot(infos, title="a run")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure.get_suptitle() == "a run"
    panels = draw(figure)
    loss, damping = panels["loss"], panels["damping"]
    assert loss.get_yscale() == damping.get_yscale() == "log"
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), np.arange(1, 7))
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), infos.loss)
    by_label = {line.get_label(): line for line in damping.lines}
    np.testing.assert_array_equal(by_label["damping"].get_ydata(), infos.damping)
    work = {line.get_label(): line for line in panels["work"].lines}
    np.testing.assert_array_equal(
        work["curvature products"].get_ydata(), infos.products
    )
    # Where the ratio is known; beyond the edge at the edge.
    steps, ratios = panels["reduction ratio"].lines[-1].get_data()
    np.testing.assert_array_equal(steps, [1, 3, 6])
    np.testing.assert_array_equal(ratios, [1.0, -0.5, 2.0])
    marks = {line.get_label(): line for line in panels["step size"].lines}
    np.testing.assert_array_equal(marks["accepted"].get_xdata(), [1, 4])
    np.testing.assert_array_equal(marks["rejected"].get_xdata(), [2, 5])
    np.testing.assert_array_equal(marks["shortened"].get_ydata(), [0.25, 0.25])


@pytest.mark.parametrize(
    ("scale", "numbers"),
    [
        ("log", dict()),
        ("linear", dict(loss=[-1.0, -2.0])),
        ("log", dict(loss=[1.0, 0.0], gradient_norm=[1.0, 0.0], damping=0.0)),
        ("log", dict(loss=[1.0, np.nan], damping=np.inf, curvature=np.nan)),
        ("linear", dict(loss=np.nan, gradient_norm=np.nan, reduction_ratio=np.nan)),
        ("linear", dict(loss=0.0, gradient_norm=0.0, damping=0.0, step_size=0.0)),
        ("log", dict(status=Status.ZERO_GRADIENT, evaluations=[0, 0])),
    ],
)
def test_the_plot_can_draw_anything(scale, numbers):
    panels = draw(watch.plot(an_info(**numbers)))
    assert len(panels) == 6
    assert panels["loss"].get_yscale() == scale
    texts = [text.get_text() for text in panels["loss"].texts]
    assert ("not finite" in texts) == np.all(np.isnan(numbers.get("loss", 1.0)))


def test_the_plot_starts_with_the_first_step_and_draws_into_a_figure():
    waiting = an_info(status=Status.NOT_STARTED)
    figure = matplotlib.figure.Figure()
    assert watch.plot([waiting, waiting, an_info(), an_info()], figure=figure) is figure
    np.testing.assert_array_equal(draw(figure)["loss"].lines[0].get_xdata(), [3, 4])
    with pytest.raises(ValueError, match="watch.plot: no step has been taken"):
        watch.plot(waiting)


# Optional dependencies.


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.live", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    install = r'which cannot be imported: pip install "ncg_optax\[watch\]"'
    with pytest.raises(ImportError, match=f"live_table needs rich, {install}"):
        watch.live_table().__enter__()
    with pytest.raises(ImportError, match=f"plot needs matplotlib, {install}"):
        watch.plot(an_info())
    assert watch.to_dict(an_info())


def test_importing_the_package_imports_neither():
    check = (
        "import sys, ncg_optax; ncg_optax.watch;"
        "print({'rich', 'matplotlib'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
