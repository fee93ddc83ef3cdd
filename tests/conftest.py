"""Two simulated devices for every test, exact matrix products, and the folder of files beside the repository."""

import os
import sys
from pathlib import Path

# TensorFlow, which clu loads, imports Keras; the comparisons with Keras want it on JAX.
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `configs` is no part of the installed package

jax.config.update("jax_num_cpu_devices", 2)
# A GPU rounds float32 products to TF32 otherwise.
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; the test is skipped where it is missing."""
    folder = Path(os.environ.get("JAXSEG_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set JAXSEG_SHARED to the folder with data and weights")
    return folder


@pytest.fixture
def no_compile_cache():
    """No program is kept on disk while the test lasts: those that call oneDNN can't be."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
