"""Weight files to tensors by name.

Whoever made a file is not trusted. Only regular files are opened, of at most `MOST_BYTES`, and no tensor may unpack to
more than that: eight times what the largest network here has in float32. Nothing outside the file is read, no code is
run, and what has a checksum (a zip of PyTorch's) is held against it. What is refused is refused by the file's name, and
by the tensor's.
"""

import itertools
import json
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxseg.errors import UserError, shown
from jaxseg.files import open_regular

MOST_BYTES = 4 * 2**30

# safetensors' names of what is read; there are 8-bit floats and packed ones besides.
DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"}

# What Keras calls a layer's variables, which it stores in this order, by their numbers of axes.
KERAS_VARIABLES = {
    (4,): ("kernel",),
    (4, 1): ("kernel", "bias"),
    (2,): ("kernel",),
    (2, 1): ("kernel", "bias"),
    (4, 4): ("depthwise_kernel", "pointwise_kernel"),
    (4, 4, 1): ("depthwise_kernel", "pointwise_kernel", "bias"),
    (1, 1, 1, 1): ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file.

    Raises:
      UserError: there is no such file, it is none of that kind or cut short, or a tensor is of another type than
        `DTYPES`.
    """
    from safetensors import SafetensorError, safe_open

    path = _existing(path)
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
            for name in names:
                if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
                    raise _refused(path, name, f"is {dtype}; floats of 16, 32 or 64 bits are read")
            return {name: as_array(file.get_tensor(name)) for name in names}
    except UserError:
        raise
    except (
        SafetensorError,
        json.JSONDecodeError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise _unreadable(path, "safetensors", error) from error


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a state dict that PyTorch saved, also of one below 'state_dict' or 'model'.

    Nothing of the file is executed: what PyTorch's unpickler for weights alone does not know is refused.

    Raises:
      UserError: there is no such file, it is none of that kind, damaged or cut short, its pickle would execute code, it
        holds no state dict, or other tensors than dense ones, or PyTorch is missing.
    """
    path = _existing(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"weights: {shown(path)} needs PyTorch to be read (pip install torch), or safetensors.torch.save_file to "
            "bring it to .safetensors where it was made"
        ) from error
    in_a_zip = _check_zip(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code, bare = re.search(r"GLOBAL (\S+)", str(error)), path.read_bytes()[:1] == pickle.PROTO
        if code or bare:
            calls = f" ({shown(code[1])})" if code else ""
            # A zip is known to be whole; an older file's end may be that of a name which is none.
            cut = ", or it is cut short" if bare else ""
            raise UserError(
                f"weights: {shown(path)} is refused: reading it would execute code{calls}{cut}; a state dict of "
                "tensors is due (torch.save(model.state_dict(), path))"
            ) from error
        raise _unreadable(path, "a PyTorch checkpoint", "no pickle") from error
    except Exception as error:  # of whatever type the place in the file where PyTorch stumbles has
        raise _unreadable(path, "a PyTorch checkpoint", str(error).split(". ")[0] or "it ends too early") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(name, str) and isinstance(t, torch.Tensor) for name, t in loaded.items())
    ):
        raise UserError(
            f"weights: {shown(path)} holds no state dict: tensors by name are due, plain or below 'state_dict' or "
            "'model'"
        )
    tensors, left, places = {}, MOST_BYTES, {}
    for name, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            raise _refused(path, name, f"is no dense tensor ({tensor.layout}, {tensor.device})")
        left -= tensor.numel() * tensor.element_size()
        if left < 0 or not _is_dense(tensor):
            raise _refused(path, name, f"says {list(tensor.shape)} by strides of {tensor.stride()}, and holds less")
        # Before PyTorch 1.6 nothing in a file was checked: a flipped bit gives one tensor the place of another.
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        if not in_a_zip and tensor.numel() and places.setdefault(place, name) != name:
            raise _refused(path, name, f"has the values of {shown(places[place])}: the file is damaged")
        try:
            tensors[name] = as_array(tensor)
        except (TypeError, RuntimeError) as error:
            raise _refused(path, name, f"is {tensor.dtype}; floats of 16, 32 or 64 bits are read") from error
    return tensors


def _is_dense(tensor) -> bool:
    """Whether each value of a tensor of PyTorch's has a place of its own and none lies between."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return not tensor.numel()
        expected *= size
    return True


def _check_zip(path: pathlib.Path) -> bool:
    """Whether a file is a zip; in that what PyTorch does not look at: the checksums, and how much is packed.

    Raises:
      UserError: a checksum is wrong, or it unpacks to more than `MOST_BYTES`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MOST_BYTES:
                raise _too_large(path)
            # PyTorch can be told to write none.
            damaged = archive.testzip() if any(item.CRC for item in archive.infolist()) else None
    except UserError:
        raise
    except zipfile.BadZipFile:
        return False  # PyTorch says what it thinks of it: before 1.6 its files were none
    except Exception as error:  # zipfile raises whatever its decoders do
        raise _unreadable(path, "a PyTorch checkpoint", error) from error
    if damaged:
        raise UserError(
            f"weights: {shown(path)} is damaged: the checksum of {shown(damaged)} is wrong; fetch or copy it again"
        )
    return True


def as_array(tensor: Any) -> np.ndarray:
    """A tensor of NumPy, JAX or PyTorch, there from any device, as an array; bfloat16 as float32.

    Raises:
      TypeError, RuntimeError: PyTorch's tensor is none that NumPy can hold: sparse, quantised, of 8-bit floats.
    """
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    array = np.asarray(tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def read_keras(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a Keras file, as `layer/variable`: 'block1_conv1/kernel', 'block1_conv1_bn/moving_mean'.

    It may be a `.h5` (weights or a whole model, of any version of Keras) or a `.weights.h5` of Keras 3; layers come in
    the model's order in the one, in that of their class in the other. Names of variables are Keras 3's, whatever they
    are in the file. Names of layers are the file's: not all files of a network have the same. An old `.weights.h5`
    has none; then they are the classes, numbered: 'conv2d', 'conv2d_1'.

    Raises:
      UserError: there is no such file, it is none of that kind or cut short, a tensor in it is of another type than
        numbers, lies outside the file or was never written, or h5py is missing.
    """
    path = _existing(path)
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"weights: {shown(path)} needs h5py to be read (pip install h5py)") from error
    tensors = {}
    try:
        with h5py.File(path, "r") as file:
            for name, kind in _links(file):
                if kind not in (h5py.HardLink, h5py.SoftLink):
                    raise _refused(path, name, "is a link to another file")
            left, taken = MOST_BYTES, {}
            for layer, datasets, names in _keras_layers(file):
                for name, dataset in zip(names, datasets, strict=True):
                    if fault := _fault(dataset, h5py):
                        raise _refused(path, f"{layer}/{name}", fault)
                    left -= dataset.nbytes
                    # The format has no checksums: a flipped bit in an address gives a tensor the place of others.
                    start = dataset.id.get_offset()
                    if start is not None and dataset.nbytes:
                        # By object: a link gives one twice.
                        taken[h5py.h5o.get_info(dataset.id).addr] = (start, start + dataset.nbytes, f"{layer}/{name}")
                if left < 0:
                    raise _too_large(path)
                variables = [np.asarray(dataset) for dataset in datasets]
                names = KERAS_VARIABLES.get(tuple(tensor.ndim for tensor in variables), names)
                for name, tensor in zip(names, variables, strict=True):
                    if f"{layer}/{name}" in tensors:
                        raise ValueError(f"two tensors are called {layer}/{name}")
                    tensors[f"{layer}/{name}"] = tensor
            for (_, end, _), (start, _, name) in itertools.pairwise(sorted(taken.values())):
                if start < end:
                    raise _refused(path, name, "lies where another one does: the file is damaged")
    except UserError:
        raise
    except Exception as error:  # of whatever type the place in the file where HDF5 stumbles has
        raise _unreadable(path, "Keras' HDF5", error) from error
    if not tensors:
        raise UserError(f"weights: {shown(path)} is HDF5 but holds no layers of a Keras model")
    return tensors


def _links(file) -> list[tuple[str, type]]:
    """The names and kinds of all links of an HDF5 file; none is followed out of it."""
    found = []
    file.visititems_links(lambda name, link: found.append((name, type(link))))
    return found


def _fault(dataset, h5py) -> str:
    """Why a dataset of HDF5 is none to be read, '' where it is one."""
    if not isinstance(dataset, h5py.Dataset):
        return "is no dataset"
    if dataset.shape is None or dataset.dtype.kind not in "fiub":
        return f"holds {'nothing' if dataset.shape is None else dataset.dtype}, numbers are due"
    # Other floats, of another bias say, HDF5 converts.
    if dataset.dtype.kind == "f" and not any(dataset.id.get_type() == kind for kind in _ieee(h5py)):
        return "holds floats of another kind than IEEE's of 16, 32 and 64 bits"
    if dataset.external or dataset.is_virtual:
        return "lies in another file"
    if dataset.nbytes > MOST_BYTES:
        return f"says {list(dataset.shape)}, {dataset.nbytes:,} bytes; at most {MOST_BYTES:,} are read"
    if dataset.chunks:
        due = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        written = dataset.id.get_num_chunks() >= due
    else:
        written = dataset.id.get_storage_size() >= dataset.nbytes
    # HDF5 gives zeros for it.
    return "" if written else f"says {list(dataset.shape)}, and not all of it was ever written"


def _ieee(h5py) -> list:
    return [getattr(h5py.h5t, f"IEEE_F{bits}{order}") for bits in (16, 32, 64) for order in ("LE", "BE")]


def _keras_layers(file) -> Iterator[tuple[str, list[Any], list[str]]]:
    """Of each layer with variables its name, its datasets in order, and the names that they have in the file."""
    # Earlier Keras 3 files, TensorFlow's among them, have the longer name.
    for root in ("layers", "_layer_checkpoint_dependencies"):
        if root in file:
            yield from _keras_3_layers(file[root])
            return
    group = file.get("model_weights", file)
    for layer in _attribute(group, "layer_names"):
        names = _attribute(group[layer], "weight_names")
        if names:
            yield (
                layer,
                [group[layer][name] for name in names],
                [name.rsplit("/", 1)[-1].removesuffix(":0") for name in names],
            )


def _keras_3_layers(group) -> Iterator[tuple[str, list[Any], list[str]]]:
    """The same of a `.weights.h5`, where a layer's group is named for its class: conv2d, conv2d_1, ..."""
    for key in sorted(group, key=_natural_order):
        variables = group[key].get("vars", {})
        if "layers" in group[key]:
            yield from _keras_3_layers(group[key]["layers"])
        if len(variables):
            names = sorted(variables, key=int)
            layer = variables.attrs.get("name", key)
            if not isinstance(layer, str):
                raise TypeError(f"the name of {key} is no text")
            yield layer, [variables[name] for name in names], names


def _attribute(group, name: str) -> list[str]:
    """A list of names; a long one is spread over `name0`, `name1`, ..."""
    parts = sorted((part for part in group.attrs if re.fullmatch(rf"{name}\d*", part)), key=_natural_order)
    return [n.decode() if isinstance(n, bytes) else str(n) for part in parts for n in group.attrs[part]]


def _natural_order(name: str) -> tuple[str, int]:
    """Sorts conv2d, conv2d_1, conv2d_2, ..., conv2d_10."""
    stem, number = re.fullmatch(r"(.*?)_?(\d*)", name).groups()
    return stem, int(number or -1)


def _existing(path: str | pathlib.Path) -> pathlib.Path:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except UserError as error:
        raise UserError(f"weights: {error}") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"weights: {shown(path)} can be no file's name ({error})") from error
    if size > MOST_BYTES:
        raise _too_large(pathlib.Path(path))
    return pathlib.Path(path)


def _unreadable(path: pathlib.Path, kind: str, error) -> UserError:
    reason = shown(" ".join(str(error).split()))[:300] or type(error).__name__
    return UserError(
        f"weights: {shown(path)} can't be read as {kind} ({reason}); it is another kind of file, or cut short"
    )


def _refused(path: pathlib.Path, name: str, fault: str) -> UserError:
    return UserError(
        f"weights: {shown(path)} is refused: the tensor {shown(name)} {fault}; save the network's tensors as float32"
    )


def _too_large(path: pathlib.Path) -> UserError:
    return UserError(
        f"weights: {shown(path)} has, or unpacks to, more than {MOST_BYTES:,} bytes, which no network here needs: save "
        "the tensors of the network alone, without an optimizer's"
    )


READERS = {
    ".safetensors": read_safetensors,
    ".pth": read_torch,
    ".pt": read_torch,
    ".h5": read_keras,
    ".hdf5": read_keras,
}


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a weights file, by the names that it gives them; float16 and bfloat16 ones too.

    Which kind of file it is, its ending says: see `READERS`.

    Raises:
      UserError: there is no such file, it is of no known kind, cut short, or would execute code.
    """
    path = _existing(path)
    if path.suffix not in READERS:
        raise UserError(f"weights: {shown(path)} is of no known kind: its name must end in {', '.join(READERS)}")
    return READERS[path.suffix](path)
