"""The notebooks run, with small settings, and are committed as a run left them."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Of the machine that a notebook ran on: folders, interpreters, users.
PRIVATE = re.compile(
    r"/(?:home|Users|root|tmp|work|opt|usr|mnt|private)/|site-packages|ipykernel_"
    r"|[A-Z]:\\\\"
)
MAX_BYTES = 900_000  # of all notebooks together


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_all_notebooks_are_there():
    assert NAMES == [
        "curvature_pictures",
        "data_parallel",
        "flax_mnist",
        "last_layer",
        "pinn",
        "quickstart",
    ]


# The kernel is a process of its own: what it warns of is not raised here.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_runs_with_small_settings(name, monkeypatch, tmp_path):
    monkeypatch.setenv("NCG_OPTAX_SMALL", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # Of the process that runs the tests; each notebook says what it needs.
    for variable in ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    client = nbclient.NotebookClient(
        read(name),
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises what a cell raises, its assertions included


@pytest.mark.parametrize("name", NAMES)
def test_is_valid_and_names_no_kernel_of_its_own(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == KERNEL
    assert "version" not in notebook.metadata.get("language_info", {})


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_outputs_of_one_whole_run(name):
    notebook = read(name)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = [output.output_type for output in outputs(notebook)]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_say_nothing_of_the_machine(name):
    for output in outputs(read(name)):
        assert output.get("name") != "stderr", output.text
        shown = [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
        for text in shown:
            assert not PRIVATE.search(text), text


@pytest.mark.parametrize("name", NAMES)
def test_installs_only_where_the_package_is_missing(name):
    installing = [c.source for c in code_cells(read(name)) if "%pip" in c.source]
    assert len(installing) == 1
    assert 'if importlib.util.find_spec("ncg_optax") is None:' in installing[0]


def test_pictures_are_small():
    sizes = {path.name: os.path.getsize(path) for path in FOLDER.glob("*.ipynb")}
    assert sum(sizes.values()) < MAX_BYTES, sizes
