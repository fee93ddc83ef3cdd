"""Fixtures of tiny runs, for test modules that say `pytest_plugins = ["tiny_runs"]`."""

import pathlib
import shutil

import jax
import pytest
from helpers import Workplace, use
from jax.experimental.compilation_cache import compilation_cache

from jaxseg.train import train


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """The folders of all runs of the session; programs compiled by one run are read by the next."""
    workplace = Workplace(tmp_path_factory.mktemp("workplace"))
    settings = {"jax_compilation_cache_dir": str(workplace.cache), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield workplace
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def tiny(workplace, monkeypatch):
    """The workplace; runs of this process use it while the test lasts."""
    use(workplace, monkeypatch)
    return workplace


@pytest.fixture(scope="session")
def finished(workplace) -> pathlib.Path:
    """The workdir of an unbroken run of `tiny_config`; not to be changed, see `finished_copy`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(workplace, monkeypatch, events=True)
        train(workplace.config(), workplace.root / "finished", log=lambda line: None)
    return workplace.root / "finished"


@pytest.fixture
def finished_copy(finished, tiny, tmp_path) -> pathlib.Path:
    """A copy of that workdir for the test to do with as it likes."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
