"""The documentation site: it builds, everything is in it, all of its code is run."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ncg_optax as ncg

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("**/*.md"))


def exported(module):
    """The public names of a module: ``__all__``, or what it defines."""
    names = getattr(module, "__all__", None) or [
        name
        for name, x in vars(module).items()
        if not name.startswith("_")
        and getattr(x, "__module__", None) == module.__name__
    ]
    for name in names:
        yield f"{module.__name__}.{name}", getattr(module, name)


def public_names():
    """What users may import, by its full name: from the top, else from its folder."""
    yield from exported(ncg)
    inner = [f"ncg_optax.{found.name}" for found in pkgutil.iter_modules(ncg.__path__)]
    for path in [*inner, "ncg_optax.diagnostics.watch"]:
        if not path.startswith("ncg_optax._") and path != "ncg_optax.presets":
            module = importlib.import_module(path)
            for name, x in exported(module):
                if name.rpartition(".")[2] not in ncg.__all__:
                    yield name, x


PYTHON = re.compile(r"^ *```(?:py\w*)\n(.*?)```", re.DOTALL | re.MULTILINE)
PUBLIC = dict(sorted(public_names()))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, its warnings being errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    done = subprocess.run(
        [*command, str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def html(site):
    return {page: page.read_text() for page in sorted(site.glob("**/*.html"))}


def test_every_public_name_is_in_the_reference(site):
    reference = "".join(p.read_text() for p in site.glob("reference/*.html"))
    missing = [name for name in PUBLIC if f'id="{name}"' not in reference]
    assert not missing, f"add ::: and the name to a page of docs/reference: {missing}"


def test_nothing_is_left_of_markers_roles_and_equations(site):
    for page, text in html(site).items():
        assert "<!-- readme" not in text, page
        assert not re.search(r":(func|class|math|meth):", text), page
        assert ".. math::" not in text, page
        assert 'class="arithmatex"' not in text, page
    assert "<math" in (site / "method.html").read_text()
    assert ncg.explain(ncg.Status.SHORTENED) in (
        site / "troubleshooting.html"
    ).read_text().replace("\n", " ")


def test_the_page_says_whether_anything_was_measured_on_a_gpu(site):
    text = (site / "gpu.html").read_text(encoding="utf8")
    measured = (ROOT / "benchmarks" / "results" / "gpu.json").exists()
    assert ("Nothing was measured on a GPU yet." in text) != measured
    assert ("own share</th>" in text) == measured


RETURNS = re.compile(
    r'class="doc-section-title">Returns:</span></p>\s*<ul>(.*?)</ul>', re.S
)


def test_what_is_returned_is_one_paragraph(site):
    # Left alone, each line of a section is taken for a value of its own.
    found = [
        section
        for page in (site / "reference").glob("*.html")
        for section in RETURNS.findall(page.read_text(encoding="utf8"))
    ]
    assert len(found) > 20
    for section in found:
        assert section.count('class="doc-section-item') == 1, section


def test_pages_fetch_nothing_from_elsewhere(site):
    fetched = re.compile(
        r'(?:<script[^>]*src|<link[^>]*href|<img[^>]*src)="(https?:[^"]*)'
    )
    for page, text in html(site).items():
        assert not fetched.findall(text), page


def test_every_page_is_in_the_navigation():
    # Comments aside, mkdocs.yml is plain YAML.
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def leaves(x):
        if isinstance(x, str):
            return [x]
        values = x.values() if isinstance(x, dict) else x
        return [leaf for value in values for leaf in leaves(value)]

    pages = [p.relative_to(ROOT / "docs").as_posix() for p in PAGES]
    assert sorted(leaves(config["nav"])) == sorted(pages)


def test_the_architecture_page_has_all_folders_of_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf8")
    listed = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    found = (ROOT / "ncg_optax").iterdir()
    folders = {p.name for p in found if (p / "__init__.py").exists()}
    modules = {p.name for p in (ROOT / "ncg_optax").glob("*.py")} - {"__init__.py"}
    assert set(listed) == folders | modules


def test_files_that_pages_link_to_are_in_the_site(site):
    for page, text in html(site).items():
        for target in re.findall(r'href="([^"#:?]+)[#"]', text):
            path = page.parent / target
            if page.name != "404.html":  # its links begin at the root of a server
                assert path.exists(), (page.name, target)


def test_every_public_name_has_a_docstring_with_an_example():
    lacking = {name for name, x in PUBLIC.items() if ">>>" not in (x.__doc__ or "")}
    # States that only their part reads.
    states = {name for name in lacking if name.startswith("ncg_optax.preconditioners.")}
    assert all(name.endswith("State") for name in states)
    assert lacking == states
    assert all(x.__doc__ for x in PUBLIC.values())


def test_parts_and_presets_are_shown_with_their_defaults(site):
    def plain(page):
        text = (site / "reference" / page).read_text(encoding="utf8")
        return re.sub(r"<[^>]*>", "", text), text

    shown, source = plain("solvers.html")
    assert "maxiter: int | Schedule = 200" in shown
    assert 'id="ncg_optax.cg.solve"' not in source  # no list of methods
    shown, source = plain("optimizers.html")
    assert "solver: Solver = cg()," in shown  # newton_cg
    assert "solver: Solver = quasi_newton(" in shown  # hessian_free
    assert "solver: Solver = averaged_gradient()," in shown
    assert source.count('class="doc-section-title">Parameters:') >= 4


def test_all_python_on_the_pages_is_run():
    # pytest runs what has a prompt, the tests below run the programs without one.
    programs = [
        (page.name, block)
        for page in PAGES
        for block in PYTHON.findall(page.read_text(encoding="utf8"))
        if not block.lstrip().startswith(">>>")
    ]
    assert [page for page, _ in programs] == ["compile-time.md", "gpu.md"]


def run(page, then, home):
    """Runs the program of a page, and further lines, with an empty home directory."""
    text = (ROOT / "docs" / page).read_text(encoding="utf8")
    [program] = [b for b in PYTHON.findall(text) if not b.startswith(">>>")]
    ignored = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_ENABLE_X64")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ignored)}
    done = subprocess.run(
        [sys.executable, "-c", program + then],
        env={**env, "HOME": str(home), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_settings_of_the_persistent_cache_fill_it(tmp_path):
    then = """
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: 2 * x + 1)(1.0).block_until_ready()
"""
    run("compile-time.md", then, tmp_path)
    assert any((tmp_path / ".cache" / "jax").iterdir())


def test_setting_of_float64(tmp_path):
    shown = run("gpu.md", "print(jax.numpy.zeros(1).dtype)", tmp_path)
    assert shown.strip() == "float64"
