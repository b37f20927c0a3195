"""What is imported, and when: Flax only if asked for."""

import subprocess
import sys

import pytest

# Distributions that `import ncg_optax` may take modules from: its own dependencies.
FAMILY = {"jax", "jaxlib", "optax", "chex", "ncg_optax"}

NEW_MODULES = """
import sys
import optax
before = set(sys.modules)
import ncg_optax
print("\\n".join(set(sys.modules) - before))
"""

# None in sys.modules makes an import fail, as if the package were not installed.
WITHOUT_FLAX = """
import sys
sys.modules["flax"] = None
import ncg_optax
assert callable(ncg_optax.newton_cg)
import ncg_optax.flax
"""


def run(code, *options):
    return subprocess.run(
        [sys.executable, *options, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
    )


def is_ours(module, stdlib=sys.stdlib_module_names):
    package = module.partition(".")[0]
    return package in FAMILY or package in stdlib


def test_no_module_that_optax_does_not_need():
    result = run(NEW_MODULES)
    assert result.returncode == 0, result.stderr
    modules = result.stdout.split()
    assert "ncg_optax" in modules
    assert not sorted(m for m in modules if not is_ours(m))


def test_python_without_docstrings():
    # The docstrings of the presets are made of that of newton_cg.
    result = run("import ncg_optax; ncg_optax.hessian_free()", "-OO")
    assert result.returncode == 0, result.stderr


def test_a_sentence_where_flax_is_missing():
    result = run(WITHOUT_FLAX)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: ncg_optax.flax needs Flax, which cannot be imported: "
        'pip install "ncg_optax[flax]"'
    )


@pytest.mark.parametrize(
    ("module", "expected"),
    [("jax.experimental.x", True), ("json.decoder", True), ("flax.core", False)],
)
def test_the_check_itself(module, expected):
    assert is_ours(module) is expected
