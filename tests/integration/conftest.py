import jax
import pytest

# Not for doctests: they import it as a module named like the other folders' conftest.
collect_ignore = ["conftest.py"]


@pytest.fixture(autouse=True, scope="module")
def single_precision():
    with jax.enable_x64(False):
        yield
