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


# For modules that count compiled programs. JAX stores no program of another function
# once it holds those of 8192, and in a long run of tests it does.
@pytest.fixture(scope="module")
def empty_jit_caches():
    jax.clear_caches()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data directory of the benchmarks, an empty cache, and no network."""
    import urllib.request

    from benchmarks.datasets import VARIABLE, archives

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv(VARIABLE, str(tmp_path / "data"))
    monkeypatch.setattr(archives, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    (tmp_path / "data").mkdir()
    return tmp_path
