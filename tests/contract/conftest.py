import jax
import pytest

# Not for doctests: they import it as a module named like the other folders' conftest.
collect_ignore = ["conftest.py"]


@pytest.fixture(autouse=True, scope="module")
def single_precision():
    # optax's own tests switch x64 on where they want it; it must be off before. They
    # set the global value, which the context manager jax.enable_x64 would hide.
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)
