"""What a step moves between devices, and what many devices want of the network and the disk: `--mode=scaling`.

The bytes are counted from the network's parameters and checked against the collectives of the compiled program.
"""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from jaxseg.benchmark.networks import AUXILIARY_WEIGHT, LEARNING_RATE, random_batch
from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from jaxseg.state import abstract_variables, create_state, init_variables
from jaxseg.step import create_mesh, create_train_step, put_batch, replicate, split_largest_axis, split_state

DEVICES = (8, 64, 512)
HIDDEN = 2 / 3  # of a step: the backward pass, behind which gradients can be exchanged layer by layer
_SIZES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s64": 8, "u8": 1, "s8": 1, "pred": 1}
_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def counted(model: nn.Module, batch: Mapping[str, np.ndarray], num_devices: int, fsdp: bool = False) -> dict[str, int]:
    """Bytes of the arrays that a step exchanges, each array once, and those that go to a device.

    Returns:
      `gradients`: float32, whatever the network computes in. `statistics`: BatchNorm's sums, two of the forward pass
      and one more of the backward pass a channel. `loss`: its sum and the number of its pixels. `gathered`: parameters,
      for `fsdp`, those that are split. `input`: images and labels of one device, as bytes; `batch` has its rows.
    """
    variables = abstract_variables(model)
    sizes = {kind: sum(4 * x.size for x in jax.tree.leaves(variables[kind])) for kind in ("params", "batch_stats")}
    mesh = jax.sharding.AbstractMesh((num_devices,), ("data",))
    split = [x for x in jax.tree.leaves(variables["params"]) if any(split_largest_axis(x, mesh).spec)]
    return {
        "gradients": sizes["params"],
        "statistics": sizes["batch_stats"] * 3 // 2,
        "loss": 8,
        "gathered": sum(4 * x.size for x in split) if fsdp else 0,
        "input": sum(array.nbytes for array in batch.values()),
    }


def found(model: nn.Module, batch: Mapping[str, np.ndarray], fsdp: bool = False) -> Counter[str]:
    """Bytes of the arrays that each kind of collective of the compiled step gives, over two simulated devices.

    `batch` has the rows of both devices.

    Raises:
      RuntimeError: there are no two CPU devices.
    """
    devices = jax.devices("cpu")[:2]
    if len(devices) < 2:
        raise RuntimeError("two simulated devices are due: set JAX_NUM_CPU_DEVICES=2")
    mesh, tx = create_mesh(devices), optax.adam(LEARNING_RATE)
    state = create_state(init_variables(model, 0), tx)
    scale = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    step = create_train_step(model, tx, mesh, **scale, seed=0, auxiliary_weight=AUXILIARY_WEIGHT, fsdp=fsdp)
    state = split_state(state, mesh) if fsdp else replicate(state, mesh)
    return collectives(step.lower(state, put_batch(batch, mesh)).compile().as_text())


def collectives(program: str) -> Counter[str]:
    """Bytes of the results of each kind of collective in a compiled program's text."""
    total = Counter()
    for kind in _COLLECTIVE.finditer(program):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", kind[1]):
            total[kind[2]] += _SIZES[dtype] * math.prod(int(side) for side in shape.split(",") if side)
    return total


def needs(
    moved: Mapping[str, int], step_seconds: float, num_devices: int, images: int, image_bytes: float
) -> dict[str, float]:
    """What `num_devices` devices want so that a step stays as long as that of one device.

    Args:
      moved: what `counted` gives.
      images: of a step of one device.
      image_bytes: of an image and its labels on disk.

    Returns:
      `batch`; `images_per_second`; `sent`, bytes that each device sends a step when rings sum the gradients (2 (n - 1)
      / n of them) and gather parameters ((n - 1) / n); `network`, bytes a second of each device's link that hide this
      behind the backward pass; `disk`, bytes a second, of all devices together.
    """
    share = (num_devices - 1) / num_devices
    sent = share * (2 * (moved["gradients"] + moved["statistics"] + moved["loss"]) + moved["gathered"])
    rate = num_devices * images / step_seconds
    return {
        "batch": num_devices * images,
        "images_per_second": rate,
        "sent": sent,
        "network": sent / (HIDDEN * step_seconds),
        "disk": rate * image_bytes,
    }


def measure(
    model: nn.Module,
    what: Mapping[str, Any],
    *,
    step_seconds: float,
    image_bytes: float,
    fsdp: bool,
    log: Callable[[str], object],
) -> dict[str, Any]:
    """Prints the bytes of a step, counted and found, and the table over `DEVICES`; gives what is in them.

    Args:
      what: of the network: `batch`, images of a step of one device, `size` and `classes`.
      image_bytes: 0 where no data was named.
    """
    size = what["size"] if not isinstance(what["size"], int) else (what["size"],) * 2
    batch = random_batch(what["batch"], tuple(size), what["classes"])
    moved = counted(model, batch, DEVICES[0], fsdp)
    # Small images: what is exchanged does not depend on them.
    there = found(model, random_batch(4, (64, 64), what["classes"]), fsdp)
    due = moved["gradients"] + moved["statistics"] + moved["loss"]
    reduced = there["all-reduce"] + 2 * there["reduce-scatter"]
    log(
        f"a step exchanges {_size(moved['gradients'])} of gradients, {_size(moved['statistics'])} of BatchNorm's sums"
        + (f" and gathers {_size(moved['gathered'])} of parameters" if fsdp else "")
        + f"; each device is given {_size(moved['input'])} of images and labels"
    )
    words = ", ".join(f"{name} {_size(value)}" for name, value in sorted(there.items()))
    log(f"the program compiled for two devices: {words}; {reduced / due:.4f} times what was counted is summed")
    log(f"\na step of one device takes {1e3 * step_seconds:.1f} ms\n")
    log("| devices | batch | images a second | sent by each, a step | network of each | disk, of all |")
    log("|---:|---:|---:|---:|---:|---:|")
    rows = {n: needs(moved, step_seconds, n, what["batch"], image_bytes) for n in DEVICES}
    for n, row in rows.items():
        disk = f"{row['disk'] / 2**20:,.0f} MiB/s" if image_bytes else ""
        log(
            f"| {n} | {row['batch']:,.0f} | {row['images_per_second']:,.0f} | {_size(row['sent'])} | "
            f"{8 * row['network'] / 1e9:,.1f} Gbit/s | {disk} |"
        )
    return {**what, "fsdp": fsdp, "step_seconds": step_seconds, "moved": moved, "collectives": there, "devices": rows}


def step_seconds_of(arguments: Sequence[str]) -> float:
    """Of a step of one device, as `python -m jaxseg.benchmark ARGUMENTS` measures it, in a process of its own."""
    command = [sys.executable, "-m", "jaxseg.benchmark", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["contenders"]["jaxseg"]["step_ms"] / 1e3


def _size(count: float) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**18 else f"{count / 2**10:.1f} KiB"
