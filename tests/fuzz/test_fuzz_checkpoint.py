"""Flipped bits in everything that a run keeps: each is refused by name, or changes nothing that is read."""

import collections
import json
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import config as configs
from jaxseg.checkpoint import Checkpoints
from jaxseg.errors import UserError
from jaxseg.state import TrainState

pytest_plugins = ["tiny_runs"]
pytestmark = pytest.mark.nightly

FLIPS = 200  # in checkpoints
FLIPS_OF_FILES = 60  # in config.json, info.json and their checksums
SEED = 24
SECONDS = 30.0  # that reading a checkpoint may take
PROGRESS = {"best_score": 0.5, "best_step": 4, "stale": 1, "evaluated": 4, "losses": [0.1, 1 / 3], "train_seconds": 2.5}


def a_state(step: int) -> TrainState:
    """Of the parts of a network: many small arrays, some larger ones, moments of them."""
    rng = np.random.default_rng(step)
    params = {f"layer_{i}": {"kernel": rng.normal(size=(3, 3, 8, 8)), "bias": rng.normal(size=8)} for i in range(8)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    moments = jax.tree.map(lambda x: x * 0.5, params)
    return TrainState(jnp.asarray(step, jnp.int32), params, {"mean": jnp.full((8,), 0.25)}, ({"mu": moments},))


def read_all(workdir: pathlib.Path, kind: str, step: int) -> str:
    """What came of reading a checkpoint whole and its variables alone: 'refused', 'the same' or what is wrong."""
    due, refused = a_state(step), 0
    try:
        with Checkpoints(workdir) as checkpoints:
            state, progress = checkpoints.restore(a_state(0), kind)
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), state, due)
        if not all(jax.tree.leaves(same)) or progress != PROGRESS:
            return "silently another state"
    except UserError as error:
        refused += 1
        if str(workdir / "checkpoints" / kind) not in str(error) or "\n" in str(error):
            return f"refused without its name: {error}"
    try:
        with Checkpoints(workdir, read_only=True) as checkpoints:
            variables = checkpoints.restore_variables(a_state(0).variables, *checkpoints.find(kind))
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, due.variables))):
            return "silently other variables"
    except UserError as error:
        refused += 1
        if str(workdir / "checkpoints" / kind) not in str(error):
            return f"refused without its name: {error}"
    return "refused" if refused else "the same"


def flip(path: pathlib.Path, chance: random.Random) -> str:
    """Flips one bit of a file, and says which."""
    data = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"{path.parent.name}/{path.name} byte {place} bit {bit}"


def attack(scratch: pathlib.Path) -> None:
    """Prints a line of JSON for each flip; the program of the child process."""
    chance, whole = random.Random(SEED), scratch / "whole"
    with Checkpoints(whole) as checkpoints:
        for kind, step in (("best", 4), ("latest", 6)):
            checkpoints.save(kind, a_state(step), PROGRESS)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    files = [file for file in files if (whole / file).stat().st_size]
    sizes = [(whole / file).stat().st_size for file in files]
    for number in range(FLIPS):
        # Half of them wherever a byte is, half in any file, for most bytes are of few files.
        file = chance.choices(files, sizes)[0] if number % 2 else chance.choice(files)
        workdir = pathlib.Path(shutil.copytree(whole, scratch / str(number)))
        where = flip(workdir / file, chance)
        kind, step = file.parts[1], int(file.parts[2])
        try:
            outcome = read_all(workdir, kind, step)
        except Exception as error:
            outcome = f"traceback: {error!r}"
        print(json.dumps([where, outcome]), flush=True)
        shutil.rmtree(workdir)


def test_flipped_bits_in_checkpoints_are_refused_or_harmless(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
    code += f"import pathlib, test_fuzz_checkpoint as fuzz; fuzz.attack(pathlib.Path({str(tmp_path)!r}))"
    limit = 120 + SECONDS * FLIPS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    counts = collections.Counter(outcome for _, outcome in results)
    print(counts)
    wrong = [result for result in results if result[1] not in ("refused", "the same")]
    assert not wrong, wrong
    assert len(results) == FLIPS and counts["refused"] > FLIPS / 2


def test_flipped_bits_in_the_files_of_a_run_are_refused(finished_copy):
    chance = random.Random(SEED)
    whole = {
        path: path.read_bytes() for name in ("config.json", "info.json", "B2SUMS") for path in [finished_copy / name]
    }
    configs.read_info(finished_copy, configs.read(finished_copy))
    for _ in range(FLIPS_OF_FILES):
        path = chance.choice(list(whole))
        where = flip(path, chance)
        with pytest.raises(UserError) as error:
            configs.read_info(finished_copy, configs.read(finished_copy))
        assert path.name in str(error.value) and "\n" not in str(error.value), where
        path.write_bytes(whole[path])
