"""Broken weights files: no traceback, no hang, no other values without a word.

Files of a small network, one of each format, are cut, flipped, overwritten and crafted. A case is *refused* by a
UserError that names the file, or *taken*; what is taken must have the values that were written. Bits are flipped in
what describes the tensors and not in their values where the format has no checksum: nobody could tell.

    python tests/fuzz/test_fuzz_weights.py

counts what the jaxseg on PYTHONPATH does.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest

SEED = 24
COUNTS = {"safetensors": 80, "zip": 60, "legacy": 80, "keras": 80}
SECONDS = 20  # of a case
ENDINGS = {"safetensors": ".safetensors", "zip": ".pth", "legacy": ".pth", "keras": ".weights.h5"}
ROOT = Path(__file__).parents[2]


def network():
    """A network and its tensors under torchvision's and Keras' names; registered with both."""
    from flax import linen as nn
    from flax.traverse_util import flatten_dict

    from jaxseg.models.pretrained import keras, torchvision

    class Backbone(nn.Module):
        output_stride: int = 32

        @nn.compact
        def __call__(self, images, *, train, depth=5):
            x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(images)
            x = nn.BatchNorm(not train, name="bn")(x)
            return (nn.Conv(4, (1, 1), name="deep")(x),)

    class Small(nn.Module):
        backbone: nn.Module
        num_classes: int = 5
        in_channels: int = 3

        @nn.compact
        def __call__(self, images, *, train):
            (x,) = self.backbone(images, train=train)
            return nn.Conv(self.num_classes, (1, 1), name="classifier")(x)

    def of_torchvision(backbone):
        from jaxseg.models.pretrained.entries import batch_norm, conv

        yield from conv(("stem",), "conv1", role="stem")
        yield from batch_norm(("bn",), "bn1")
        yield from conv(("deep",), "conv2", bias=True)

    def of_keras(backbone):
        yield from keras.conv_bn(("stem",), "conv1", "bn1", role="stem")
        yield from keras.conv(("deep",), "conv2", bias=True)

    def flat_names(names):
        # `conv_bn` wants children `conv` and `bn`.
        import dataclasses

        for entry in names(None):
            parts = entry.path
            if parts[1:3] in (("stem", "conv"), ("stem", "bn")):
                parts = (parts[0], "stem" if parts[2] == "conv" else "bn", *parts[3:])
            yield dataclasses.replace(entry, path=parts)

    torchvision.BACKBONES[Backbone] = of_torchvision
    keras.BACKBONES[Backbone] = lambda backbone: flat_names(of_keras)
    model = Small(Backbone())
    import jax

    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(SEED)
    flat = {
        path: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(shapes).items()
        if path[1] == "backbone"
    }
    layouts = {"keras": keras.backbone_layout, "torch": torchvision.backbone_layout}
    tensors = {
        library: {
            entry.name: entry.to_theirs(flat[(entry.path[0], "backbone", *entry.path[1:])])
            for entry in find(model.backbone).entries
        }
        for library, find in layouts.items()
    }
    return model, shapes, flat, tensors


def write(kind: str, path: Path, tensors) -> None:
    if kind == "safetensors":
        from safetensors.numpy import save_file

        save_file(tensors["torch"], path)
    elif kind == "keras":
        import h5py

        layers = collections.defaultdict(dict)
        for name, tensor in tensors["keras"].items():
            layers[name.split("/")[0]][name.split("/")[1]] = tensor
        with h5py.File(path, "w") as file:
            for i, (layer, variables) in enumerate(layers.items()):
                group = file.create_group(f"layers/{'batch_normalization' if 'bn' in layer else f'conv2d_{i}'}/vars")
                group.attrs["name"] = layer
                for j, tensor in enumerate(variables.values()):
                    group[str(j)] = tensor
    else:
        import torch

        content = {name: torch.from_numpy(tensor) for name, tensor in tensors["torch"].items()}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


def structure(kind: str, content: bytes, tensors) -> list[int]:
    """The places of the bytes that say what is there."""
    if kind == "zip":
        return list(range(len(content)))
    if kind == "safetensors":
        return list(range(8 + int.from_bytes(content[:8], "little")))
    taken = set()
    for tensor in tensors["keras" if kind == "keras" else "torch"].values():
        start = content.find(tensor.tobytes())
        assert start >= 0
        taken |= set(range(start, start + tensor.nbytes))
    return [place for place in range(len(content)) if place not in taken]


def broken(kind: str, content: bytes, tensors, rng: random.Random) -> bytes:
    places, content = structure(kind, content, tensors), bytearray(content)
    how = rng.choice(["flip", "flip", "flip", "bytes", "cut", "insert", "delete", "noise", "craft", "craft"])
    if how == "flip":
        content[rng.choice(places)] ^= 1 << rng.randrange(8)
    elif how == "bytes":
        start = rng.randrange(len(places) - 8)
        for place in places[start : start + rng.randint(2, 8)]:
            content[place] = rng.randrange(256)
    elif how == "cut":
        return bytes(content[: rng.randrange(len(content))])
    elif how == "insert":
        place = rng.choice(places)
        return bytes(content[:place] + rng.randbytes(rng.randint(1, 16)) + content[place:])
    elif how == "delete":
        place = rng.choice(places)
        return bytes(content[:place] + content[place + rng.randint(1, 16) :])
    elif how == "noise":
        return rng.randbytes(rng.randrange(4000))
    else:
        return crafted(kind, bytes(content), rng)
    return bytes(content)


def crafted(kind: str, content: bytes, rng: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crafted"
        if kind == "safetensors":
            size = int.from_bytes(content[:8], "little")
            header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
            name = rng.choice([key for key in header if key != "__metadata__"])
            header[name] = header[name] | rng.choice(
                [
                    *({"dtype": dtype} for dtype in ("F8_E4M3", "F8_E5M2", "C64", "I32", "BF16", "F4", "", 5, None)),
                    *({"shape": shape} for shape in ([-1], [2**63], [2**40, 2**40], [0], [], [1.5], "x", [[1]], None)),
                    *({"data_offsets": pair} for pair in ([0, 2**62], [-4, 0], [4, 0], [0, 0], [0], "x", None)),
                ]
            )
            header = rng.choice([json.dumps(header), json.dumps([header]), "[" * 100_000, "null", '{"a": 1e999}'])
            head = header.encode()
            return rng.choice([len(head), len(head), 2**63, 2**40, 0]).to_bytes(8, "little") + head + data
        if kind == "keras":
            import h5py

            with h5py.File(path, "w") as file:
                group = file.create_group("layers/conv2d/vars")
                forms = {
                    "text": lambda: group.create_dataset("0", data="text"),
                    "reference": lambda: group.create_dataset("0", data=group.ref, dtype=h5py.ref_dtype),
                    "compound": lambda: group.create_dataset("0", data=np.zeros(3, [("a", "f4"), ("b", "i4")])),
                    "terabytes": lambda: group.create_dataset("0", (2**40,), "f4"),
                    "chunks": lambda: group.create_dataset("0", (2**40,), "f4", chunks=(1024,), compression="gzip"),
                    "raw": lambda: group.create_dataset("0", (3,), "f4", external=[("/etc/passwd", 0, 12)]),
                    "link": lambda: group.__setitem__("0", h5py.ExternalLink("/etc/passwd", "/a")),
                    "circle": lambda: file["layers/conv2d"].__setitem__("layers", file["layers"]),
                    "names": lambda: group.create_dataset("zero", data=np.zeros(3)),
                    "number": lambda: (group.attrs.__setitem__("name", 5), group.create_dataset("0", data=np.ones(3))),
                    "empty": lambda: group.create_dataset("0", data=h5py.Empty("f4")),
                    "many axes": lambda: group.create_dataset("0", data=np.zeros((1,) * 30, np.float32)),
                }
                forms[rng.choice(sorted(forms))]()
            return path.read_bytes()
        import torch

        ones = torch.ones(3)
        forms = [
            lambda: {"conv1.weight": torch.zeros(1).expand(2**40)},
            lambda: {"conv1.weight": torch.zeros(1).expand(4, 3, 3, 3)},
            lambda: {"conv1.weight": torch.eye(3).to_sparse()},
            lambda: {"conv1.weight": torch.zeros(3, device="meta")},
            lambda: {"conv1.weight": ones.to(torch.float8_e5m2)},
            lambda: {"conv1.weight": ones.to(torch.complex64)},
            lambda: {"conv1.weight": ones.bool()},
            lambda: {1: ones},
            lambda: {b"a": ones, None: ones},
            lambda: {"state_dict": {"state_dict": {"a": ones}}},
            lambda: [ones],
            lambda: ones,
            lambda: {"a": [1.0] * 10},
            lambda: {"\x1b[2J\r": ones},
            lambda: {"conv1.weight": torch.full((4, 3, 3, 3), float("nan"))},
        ]
        torch.save(rng.choice(forms)(), path, _use_new_zipfile_serialization=kind == "zip")
        return path.read_bytes()


class Late(BaseException):
    """A case took longer than it may."""


def judge(kind: str, path: Path, model, shapes, flat) -> str:
    """What became of a case."""
    from jaxseg.errors import UserError
    from jaxseg.models.pretrained import read_weights

    def late(*arguments):
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        weights = read_weights(model, path, {"params": shapes["params"], "batch_stats": shapes["batch_stats"]})
    except UserError as error:
        return "refused" if path.name in str(error) else f"nameless: {error}"
    except Late:
        return "hang"
    except BaseException as error:
        return f"traceback: {type(error).__name__} {''.join(traceback.format_exc()[-300:])}"
    finally:
        signal.alarm(0)
    same = weights.tensors.keys() == flat.keys()
    same = same and all(np.array_equal(weights.tensors[path], flat[path]) for path in flat)
    return "equal" if same else "wrong"


def run(kind: str, first: int) -> None:
    """All cases of a kind from the `first` on, a line each."""
    model, shapes, flat, tensors = network()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"whole{ENDINGS[kind]}"
        write(kind, whole, tensors)
        assert judge(kind, whole, model, shapes, flat) == "equal"
        content = whole.read_bytes()
        for i in range(first, COUNTS[kind]):
            path = Path(folder) / f"case{i}{ENDINGS[kind]}"
            path.write_bytes(broken(kind, content, tensors, random.Random(f"{SEED} {kind} {i}")))
            print(json.dumps([i, judge(kind, path, model, shapes, flat)]), flush=True)
            path.unlink()


def results(kind: str) -> dict[int, str]:
    """What became of every case; a case that ends its process is a crash, and the next ones get another process."""
    found: dict[int, str] = {}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30)); "
    while len(found) < COUNTS[kind]:
        first = len(found)
        code = f"{limit}import test_fuzz_weights as t; t.run({kind!r}, {first})"
        python_path = os.pathsep.join([os.environ.get("PYTHONPATH", str(ROOT)), str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONPATH": python_path, "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
            )
        except subprocess.TimeoutExpired as error:
            out, status = error.stdout or b"", "hang"
            lines = out.decode() if isinstance(out, bytes) else out
        else:
            lines, status = done.stdout, f"crash: {done.returncode} {done.stderr[-500:]}"
        for line in lines.splitlines():
            i, what = json.loads(line)
            found[i] = what
        if len(found) == first and first == 0 and status.startswith("crash: 1 "):
            raise AssertionError(status)  # it did not even begin
        if len(found) < COUNTS[kind]:
            found[len(found)] = status
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("kind", COUNTS)
def test_a_broken_file_is_refused_by_name_or_has_its_values(kind):
    pytest.importorskip("h5py" if kind == "keras" else "numpy" if kind == "safetensors" else "torch")
    found = results(kind)
    assert len(found) == COUNTS[kind]
    assert {i: what for i, what in found.items() if what not in ("refused", "equal")} == {}
    assert sum(what == "refused" for what in found.values()) > COUNTS[kind] // 2


if __name__ == "__main__":
    for kind in COUNTS:
        found = results(kind)
        print(kind, dict(collections.Counter(what.split(":")[0] for what in found.values())), flush=True)
        for i, what in found.items():
            if what not in ("refused", "equal"):
                print("  ", i, what[:400].replace("\n", " | "))
