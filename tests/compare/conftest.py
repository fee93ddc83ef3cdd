"""A place for workdirs that are written by hand."""

import pytest
import written_runs


@pytest.fixture
def write_run(tmp_path):
    """`written_runs.write_run` by name: `write_run("a", train__seed=1)`."""
    return lambda name, **fields: written_runs.write_run(tmp_path / "runs" / name, **fields)
