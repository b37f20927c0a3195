"""The README: its programs run as pasted, its numbers are those of stored results."""

import code
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

# The rows of the table: what, the folder of its results, and our optimizer.
ROWS = (
    ("convection, physics-informed network", "convection_pinn", "hessian_free"),
    ("autoencoder of curves", "curves_autoencoder", "hessian_free"),
    ("autoencoder, 1,000 MNIST images", "mnist_autoencoder_small", "hessian_free"),
    ("life expectancy, regression", "life", "hessian_free"),
    (
        "characters of Shakespeare",
        "shakespeare",
        "stochastic_hessian_free",
    ),
    ("Portuguese to English", "poster/translation", "kronecker_adam"),
    ("images, narrow ResNet-50", "poster/resnet50_narrow", "kronecker_adam"),
)
ADAMS = {"adam", "adam_minibatch", "adamw_minibatch"}
NAMES = {"soap": "SOAP", "kfac": "K-FAC", "sgd_minibatch": "SGD"}
OURS = {
    "hessian_free",
    "stochastic_hessian_free",
    "kronecker_adam",
    "newton_cg",
    "poster",
}


class Prompt(code.InteractiveConsole):
    """An interactive interpreter in which an error is an error."""

    def showtraceback(self):
        raise  # noqa: PLE0704 - within the except clause of its caller

    def showsyntaxerror(self, *args, **kwargs):
        raise  # noqa: PLE0704


def paste(program):
    """The variables after a program was pasted, line by line, into a new prompt."""
    prompt = Prompt({"__name__": "__main__"})
    for line in [*program.splitlines(), ""]:
        more = prompt.push(line)
    assert not more, "the program ends within a statement"
    return prompt.locals


def test_no_program_is_overlooked():
    # Each program has a test below.
    assert len(PROGRAMS) == 2
    assert all("import ncg_optax as ncg" in program for program in PROGRAMS)


def test_quickstart_trains(capsys):
    found = paste(PROGRAMS[0])
    assert found["value"] < 1e-3
    assert found["loss"](found["params"], x=found["x"], y=found["y"]) < 1e-3
    shown = capsys.readouterr().out
    assert "step 40: loss" in shown and "The full step was accepted." in shown


def test_minimize_converges(capsys):
    found = paste(PROGRAMS[1])
    assert found["result"].converged
    assert jnp.allclose(found["w"], 1.0, atol=1e-2)
    assert "True" in capsys.readouterr().out


def test_it_has_at_most_900_words():
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 900


def load(path):
    """The stored results of an optimizer: what a run of the benchmarks wrote."""
    return json.loads(path.read_text(encoding="utf8"))


def final_loss(record):
    """The median over the seeds."""
    return float(np.median([run["loss"] for run in record["runs"]]))


def seconds_until(level, record):
    """Processor seconds until the median loss is as low; None if it never is."""
    curves = [run["curve"] for run in record["runs"]]
    seconds = np.unique(np.concatenate([curve["cpu_seconds"] for curve in curves]))
    losses = [
        np.array(curve["loss"])[
            np.searchsorted(curve["cpu_seconds"], seconds, side="right") - 1
        ]
        for curve in curves
    ]
    low = np.median(losses, axis=0) <= level
    return seconds[low.argmax()] if low.any() else None


def last_median(record):
    """The loss at the end of the median curve."""
    return np.median([run["curve"]["loss"][-1] for run in record["runs"]])


def number(x):
    """Three digits."""
    return f"{x:.2e}" if x < 1e-3 else f"{x:.3g}"


def row(what, folder, name):
    """A row of the table, from the files in a folder of results."""
    found = {path.stem: load(path) for path in (RESULTS / folder).glob("*.json")}
    ours = found[name]
    adam = min((r for n, r in found.items() if n in ADAMS), key=final_loss)
    others = [r for n, r in found.items() if n not in ADAMS | OURS]
    best = min(others, key=final_loss, default=None)
    lowest = min(map(final_loss, filter(None, (ours, adam, best))))

    def loss(record):
        text = number(final_loss(record))
        return f"**{text}**" if final_loss(record) == lowest else text

    level = last_median(adam)
    taken, theirs = seconds_until(level, ours), seconds_until(level, adam)
    cells = (
        what,
        f"{ours['budget']:g}",
        loss(ours),
        loss(adam),
        f"{NAMES[best['optimizer']]} {loss(best)}" if best else "",
        f"{f'{taken:.3g} s' if taken else 'never'}, {theirs:.3g} s",
    )
    return f"| {' | '.join(cells)} |"


def summary():
    """The table of the README."""
    columns = ("problem", "budget", "ours", "Adam", "best other")
    heading = f"| {' | '.join(columns)} | seconds: ours, Adam |"
    rows = [row(*each) for each in ROWS]
    return "\n".join([heading, "|---|--:|--:|--:|--:|--:|", *rows])


def test_the_table_is_that_of_the_results():
    shown = re.search(
        r"<!-- summary:begin -->\n(.*?)\n<!-- summary:end -->", README, re.DOTALL
    )
    assert shown, "the marks of the table are missing"
    assert shown[1] == summary(), f"the table should be:\n{summary()}"


def seconds_of_compiling(name):
    """Least and most seconds of compiling, over all stored results."""
    files = [*RESULTS.glob(f"*/{name}.json"), *RESULTS.glob(f"poster/*/{name}.json")]
    found = [load(path)["compile_seconds"] for path in files]
    return round(min(found)), round(max(found), -1 if max(found) > 100 else None)


def test_the_seconds_of_compiling_are_those_of_the_results():
    shown = re.search(
        r"takes (\d+) to (\d+) seconds.*up to (\d+) seconds.*\(Adam: at most (\d+)\)",
        README,
        re.DOTALL,
    )
    least, most = seconds_of_compiling("hessian_free")
    _, deep = seconds_of_compiling("stochastic_hessian_free")
    _, adam = seconds_of_compiling("adam*")
    assert [int(x) for x in shown.groups()] == [least, most, deep, adam]


def test_the_counts_of_the_poster_are_those_of_its_page():
    page = (ROOT / "docs" / "poster.md").read_text(encoding="utf8")
    counts = re.search(r"is not Newton-CG: (\d+), (\d+) and (\d+) of (\d+)\.", page)
    assert counts is not None
    loss, seconds, held_out, n = counts.groups()
    shown = " ".join(README.split())
    assert f"on {loss} of [the poster's {n} problems]" in shown
    assert f"and on {held_out} in held-out loss" in shown
    guide = (ROOT / "docs" / "minibatch.md").read_text(encoding="utf8")
    guide = " ".join(guide.split())
    assert f"in training loss on {loss} of {n} problems" in guide
    assert f"where they end on {seconds}, and" in guide
    assert f"is not higher on {held_out}:" in guide
