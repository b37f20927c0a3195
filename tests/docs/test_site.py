"""The documentation site: it builds, everything is in it, all of its code is run."""

import importlib
import inspect
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
    """The names that a module defines, or imports by ``import x as x``."""
    again = re.findall(r" import (\w+) as \1$", inspect.getsource(module), re.MULTILINE)
    for name, x in vars(module).items():
        defined = getattr(x, "__module__", None) == module.__name__
        if not name.startswith("_") and (defined or name in again):
            yield name, x


def public_names():
    """What can be imported, by its full name: of the package and its open modules."""
    for name, x in exported(ncg):
        yield f"ncg_optax.{name}", x
    for found in pkgutil.iter_modules(ncg.__path__):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"ncg_optax.{found.name}")
            for name, x in exported(module):
                if not hasattr(ncg, name):  # documented there
                    yield f"{module.__name__}.{name}", x


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


def test_files_that_pages_link_to_are_in_the_site(site):
    for page, text in html(site).items():
        for target in re.findall(r'href="([^"#:?]+)[#"]', text):
            path = page.parent / target
            if page.name != "404.html":  # its links begin at the root of a server
                assert path.exists(), (page.name, target)


def test_every_public_name_has_a_docstring_with_an_example():
    lacking = [name for name, x in PUBLIC.items() if ">>>" not in (x.__doc__ or "")]
    assert not lacking


def test_all_python_on_the_pages_is_run():
    # pytest runs what has a prompt; a block of Python without one would go untested.
    for page in PAGES:
        for block in PYTHON.findall(page.read_text()):
            assert block.lstrip().startswith(">>>"), (page, block)
