"""A network and a data set so small that a run takes a second, and finished runs of them for all tests to share.

The network is registered as the family and the backbone `tiny`; it has what resuming can get wrong, BatchNorm and
dropout. The fixtures are in `tiny_runs.py`.
"""

import itertools
import json
import os
import pathlib
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import Image

from configs import default
from jaxseg import checksums, writers
from jaxseg import train as running
from jaxseg.models import FAMILIES
from jaxseg.models.backbones import BACKBONES

ROOT = pathlib.Path(__file__).parents[1]
HEIGHT, WIDTH = 48, 64
LENGTHS = {"train": 8, "val": 3, "test": 2}
TIMES = ("train/images_per_second", "train/steps_per_second")  # the two values of a row that no run repeats


class TinyBackbone(nn.Module):
    """One strided convolution with BatchNorm."""

    output_stride: int = 16
    dilate_first_block: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), strides=4, name="conv")(x)
        return nn.relu(nn.BatchNorm(not train, momentum=0.9, name="bn")(x))


class Tiny(nn.Module):
    """The backbone, dropout and a classifier."""

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    dropout: float = 0.2
    width: int = 8
    dtype: Any = jnp.float32
    default_output_stride = 16

    @nn.compact
    def __call__(self, images, *, train):
        x = self.backbone(images, train=train)
        x = nn.relu(nn.Conv(self.width, (1, 1), name="head")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Conv(self.num_classes, (1, 1), name="classifier")(x)
        return jax.image.resize(x, (*images.shape[:3], self.num_classes), "bilinear")


class Bursting(nn.Module):
    """`Tiny` whose logits overflow once a first step has moved its weights: the next loss is no number."""

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    dtype: Any = jnp.float32
    default_output_stride = 16

    @nn.compact
    def __call__(self, images, *, train):
        logits = Tiny(self.backbone, self.num_classes, name="tiny")(images, train=train)
        return logits * jnp.exp(1e6 * self.param("pressure", nn.initializers.zeros, (self.num_classes,)))


def register(setitem: Callable[[dict, str, Any], object] = dict.__setitem__) -> None:
    """Makes `tiny` and `bursting` families of this process, and `tiny` a backbone."""
    setitem(FAMILIES, "tiny", dict.fromkeys([*BACKBONES, "tiny"], Tiny))
    setitem(FAMILIES, "bursting", {"tiny": Bursting})
    setitem(BACKBONES, "tiny", TinyBackbone)


def write_camvid(folder: pathlib.Path, lengths: dict[str, int] | None = None) -> pathlib.Path:
    """Stripes of three classes under a strip of void, in the layout of the SegNet tutorial without lists."""
    rng = np.random.default_rng(0)
    for split, length in (lengths or LENGTHS).items():
        (folder / split).mkdir(parents=True)
        (folder / f"{split}annot").mkdir()
        for index in range(length):
            edges = np.sort(rng.integers(8, WIDTH - 8, 2))
            mask = np.digitize(np.arange(WIDTH), edges).astype(np.uint8)[None].repeat(HEIGHT, 0)
            mask[:6] = 11
            image = 60 * mask[..., None].clip(0, 2) + rng.integers(0, 120, (HEIGHT, WIDTH, 3))
            Image.fromarray(image.astype(np.uint8)).save(folder / split / f"{split}_{index}.png")
            Image.fromarray(mask).save(folder / f"{split}annot" / f"{split}_{index}.png")
    return folder


def tiny_config(directory: str | os.PathLike = "", **overrides: Any) -> ConfigDict:
    """Twelve steps of the tiny network; `overrides` are fields, with `__` for the dot."""
    config = default.get_config()
    config.data.name, config.data.dir = "camvid", str(directory)
    config.data.batch_size = config.data.eval_batch_size = 2
    config.data.crop_size = 32
    config.data.scale = (0.5, 2.0)
    config.data.jitter = 0.2
    config.model.name = config.model.backbone = "tiny"
    config.optim.learning_rate = 0.05  # so that the second of three scores is the best
    config.train.num_steps = 12
    config.train.eval_every = 4
    config.train.checkpoint_every = 3
    config.train.log_every = 2
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in overrides.items()})
    return config


def flags_of(config: ConfigDict) -> list[str]:
    """The flags that set what `tiny_config` sets and more, for a command with `--config=configs/default.py`."""
    from jaxseg.config import flatten

    base = flatten(default.get_config())
    flags = []
    for field, value in flatten(config).items():
        if value != base[field]:
            flags.append(f"--config.{field}={tuple(value) if isinstance(value, list) else value}")
    return ["--config=configs/default.py", *flags]


class Workplace:
    """Folders shared by all runs of a session: the data, what is prepared of it, and compiled programs."""

    def __init__(self, root: pathlib.Path):
        self.root, self.prepared, self.cache = root, root / "prepared", root / "xla"
        self.data = write_camvid(root / "camvid")
        self.started: list[subprocess.Popen] = []

    def config(self, **overrides: Any) -> ConfigDict:
        """`tiny_config` of the data here."""
        return tiny_config(self.data, **overrides)

    def environment(self, **more: str) -> dict[str, str]:
        """Of a process that computes as this one does."""
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "",  # lines are to come by themselves when they are written
            "TFDS_DATA_DIR": str(self.prepared),
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # As the commands set it, which start anew for it.
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            **more,
        }

    def start(self, module: str, *arguments: str, before: str = "", **environment: str) -> subprocess.Popen:
        """`python -m MODULE ARGUMENTS` in a process that knows the tiny network; `before` is run in it first."""
        code = f"import helpers\nhelpers.register()\n{before}\nhelpers.run_module({module!r})"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, module: str, *arguments: str, before: str = "", **environment: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of `start`."""
        process = self.start(module, *arguments, before=before, **environment)
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, out, err


class _Without:
    def __init__(self, finder, package):
        self.finder, self.package = finder, package

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == self.package else self.finder.find_spec(name, path, target)


def without_tensorflow() -> None:
    """Makes TensorFlow a package that is not installed, for this process; where it is, its import takes seconds."""
    sys.meta_path[:] = [_Without(finder, "tensorflow") for finder in sys.meta_path]


def run_module(module: str) -> None:
    """What `python -m MODULE` does, in this process."""
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class _NoEvents:
    def __getattr__(self, name):
        return lambda *arguments: None


def use(workplace: Workplace, monkeypatch: pytest.MonkeyPatch, *, events: bool = False) -> None:
    """Lets runs of this process use `workplace` and know the tiny network; TensorFlow takes seconds to import."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(workplace.prepared))
    register(monkeypatch.setitem)
    if not events:
        monkeypatch.setattr(writers, "_event_writer", lambda directory: _NoEvents())


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Calls `action` just before a process takes its `step`-th step."""
    count, put_batch = itertools.count(1), running.put_batch

    def put(batch, mesh):
        if next(count) == step:
            action()
        return put_batch(batch, mesh)

    monkeypatch.setattr(running, "put_batch", put)


def seal_again(folder: pathlib.Path) -> None:
    """The checksums of a workdir or a checkpoint as if a run had written its files as they are now."""
    lines = (folder / checksums.SUMS).read_text().splitlines()
    title = lines[0].removeprefix("# ").rpartition(",")[0]
    names = [line.partition("  ")[2] for line in lines[1:]]
    checksums.write(folder, title, [name for name in names if (folder / name).exists()])


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """metrics.jsonl as it stands, without the values that tell the time."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def steps(workdir: pathlib.Path, kind: str) -> list[int]:
    """The finished checkpoints in a folder."""
    names = (path.name for path in (workdir / "checkpoints" / kind).iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def saved(workdir: pathlib.Path, kind: str) -> dict[str, np.ndarray]:
    """Everything in the one checkpoint of `kind`, as flat arrays; its progress, but for times, under `progress`."""
    (step,) = steps(workdir, kind)
    folder = workdir / "checkpoints" / kind / str(step)
    arrays = {}
    for item in ("variables", "optimizer"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            like = reader.metadata(folder / item).item_metadata.tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
            tree = reader.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=args))
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        arrays |= {item + jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}
    progress = json.loads((folder / "progress" / "metadata").read_text())
    arrays["progress"] = {key: value for key, value in progress.items() if key not in ("train_seconds", "timed_steps")}
    return arrays


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path, *, progress: bool = True) -> None:
    """Bit for bit: both checkpoints with all they hold, and every row of metrics but its times.

    `progress` is whether that of the latest checkpoint is compared as well.
    """
    assert rows(workdir) == rows(other)
    for kind in ("latest", "best"):
        assert steps(workdir, kind) == steps(other, kind)
        left, right = saved(workdir, kind), saved(other, kind)
        assert left.keys() == right.keys()
        if kind == "latest" and not progress:
            del left["progress"], right["progress"]
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name], err_msg=f"{kind} {name}")


def one_error(status: int, err: str) -> str:
    """The message of a process that ended as a user's mistake should: status 1, one line, no traceback."""
    assert status == 1, err
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line
