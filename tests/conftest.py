import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "reproducible", derandomize=True, database=None, deadline=None
)
hypothesis.settings.load_profile("reproducible")


# For whole modules only (pytestmark): it stays on until the last test of the module.
@pytest.fixture(scope="module")
def x64():
    with jax.enable_x64(True):
        yield
