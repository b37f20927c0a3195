import urllib.request

import pytest

from benchmarks.datasets import VARIABLE, archives


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data directory, an empty cache, and no network."""

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv(VARIABLE, str(tmp_path / "data"))
    monkeypatch.setattr(archives, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    (tmp_path / "data").mkdir()
    return tmp_path
