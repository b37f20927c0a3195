"""What the commands print at a given width, and what they say about bad input."""

import io
import pathlib

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.reports import records, tables

OPTIMIZERS = ("adam", "sgd_then_hessian_free", "stochastic_hessian_free")


def record(optimizer, loss, units=99.21, seconds=1234.5):
    curve = {
        "steps": [120_000],
        "units": [units],
        "cpu_seconds": [seconds],
        "wall_seconds": [seconds],
    }
    return {
        "scenario": "boston",
        "optimizer": optimizer,
        "budget": 500.0,
        "description": "houses",
        "metric": "R²",
        "setting": "lr 3.2e-03, batch 512, constant",
        "compile_seconds": 12.5,
        "runs": [{"loss": loss, "held_out_metric": 0.919, "curve": curve}],
    }


def printed(width, records):
    console = Console(file=io.StringIO(), width=width)
    tables.print_result(records, console)
    return console.file.getvalue().splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_four_columns_that_matter_are_whole(width):
    found = printed(width, [record(name, 1e-5) for name in OPTIMIZERS])
    (heading,) = (cells(line) for line in found if line.startswith("┃"))
    assert heading[:4] == ["optimizer", "loss", "units", "seconds"]
    rows = [cells(line) for line in found if line.startswith("│")]
    expected = ["1.00e-05", "99.21", "1234.50"]
    assert [row[:4] for row in rows] == [[name, *expected] for name in OPTIMIZERS]
    assert max(map(len, found)) <= width
    assert ("setting" in heading) == (width > 100)
    assert len(heading) == {60: 4, 80: 5, 100: 6, 160: 10}[width]


def test_they_are_whole_even_where_there_is_no_room():
    found = printed(30, [record("stochastic_hessian_free", 0.0)])
    (row,) = (cells(line) for line in found if line.startswith("│"))
    assert row == ["stochastic_hessian_free", "< 1e-07", "99.21", "1234.50"]


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["run", "bostn"], "scenario 'bostn'; did you mean 'boston'?"),
        (["run", "xyz"], "scenario 'xyz'; there are wisconsin, boston,"),
        (["run", "boston", "--optimizers", "lbgfs"], "did you mean 'lbfgs'?"),
        (["plot", "digit"], "scenario 'digit'; did you mean 'digits'?"),
        (["lead", "--optimizer", "adams"], "did you mean 'adam'?"),
        (["memory", "--models", "mpl"], "model 'mpl'; did you mean 'mlp'?"),
        (["scaling", "--model", "cn"], "model 'cn'; did you mean 'cnn'?"),
        (["scaling", "--optimizer", "newton"], "did you mean 'newton_cg'?"),
        (["precision", "--scenarios", "life_64"], "did you mean 'life_x64'?"),
        (["preconditioners", "vae"], "no scenario 'vae'; "),
        (["run", "boston", "--seeds", "0"], "'--seeds'"),
        (["run", "boston", "--budget", "much"], "'--budget'"),
        (["table", "--readme", "/nowhere"], "'--readme'"),
        (["tabel"], "tabel"),
    ],
)
def test_a_wrong_name_or_number_is_one_line(command, what):
    assert what in refused(command)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "boston"],
        ["scaling"],
        ["scaling", "--predict"],
        ["memory"],
        ["precision"],
        ["preconditioners"],
        ["gpu"],
    ],
)
def test_where_nothing_can_be_written_is_one_line(command, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for output in (file, file / "below"):
        line = refused([*command, "--output", output])
        assert f"{file} is a file, not a folder" in line
    assert file.read_text() == ""
    if pathlib.Path("/proc/self").exists():  # where not even root can write
        assert "cannot be written" in refused([*command, "--output", "/proc/results"])


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "boston" / "curves.png").mkdir(parents=True)
    found = record("adam", 0.5)
    found["runs"][0]["curve"]["loss"] = [0.5]
    records.save(found, tmp_path)
    assert "curves.png: Is a directory" in refused(
        ["plot", "boston", "--output", tmp_path]
    )


def refused(command):
    """The only line of stderr of a command that ends with exit code 2."""
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line
