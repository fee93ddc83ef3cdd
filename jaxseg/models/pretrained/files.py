"""Weight files to tensors by name."""

import json
import pathlib
import pickle
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxseg.errors import UserError

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
      UserError: there is no such file, or it is none of that kind, or it is cut short.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = _existing(path)
    try:
        return load_file(path)
    except (SafetensorError, json.JSONDecodeError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, "safetensors", error) from error


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a state dict that PyTorch saved, also of one below 'state_dict' or 'model'.

    Nothing of the file is executed: what PyTorch's unpickler for weights alone does not know is refused.

    Raises:
      UserError: there is no such file, it is none of that kind or cut short, its pickle would execute code, it holds
        no state dict, or PyTorch is missing.
    """
    path = _existing(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"weights: {path} needs PyTorch to be read (pip install torch), or safetensors.torch.save_file to be "
            "brought to .safetensors where it was made"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code, bare = re.search(r"GLOBAL (\S+)", str(error)), path.read_bytes()[:1] == pickle.PROTO
        if code or bare:
            calls = f" ({code[1]})" if code else ""
            # A zip is known to be whole; an older file's end may be that of a name which is none.
            cut = ", or it is cut short" if bare else ""
            raise UserError(
                f"weights: {path} is refused: reading it would execute code{calls}{cut}; a state dict of tensors is "
                "due (torch.save(model.state_dict(), path))"
            ) from error
        raise _unreadable(path, "a PyTorch checkpoint", "no pickle") from error
    except Exception as error:  # of whatever type the place in the file where PyTorch stumbles has
        raise _unreadable(path, "a PyTorch checkpoint", str(error).split(". ")[0] or "it ends too early") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise UserError(
            f"weights: {path} holds no state dict: tensors by name are due, plain or below 'state_dict' or 'model'"
        )
    return {name: as_array(tensor) for name, tensor in loaded.items()}


def as_array(tensor: Any) -> np.ndarray:
    """A tensor of NumPy, JAX or PyTorch, there from any device, as an array; bfloat16 as float32."""
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
      UserError: there is no such file, it is none of that kind or cut short, or h5py is missing.
    """
    path = _existing(path)
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"weights: {path} needs h5py to be read (pip install h5py)") from error
    tensors = {}
    try:
        with h5py.File(path, "r") as file:
            for layer, variables, names in _keras_layers(file):
                names = KERAS_VARIABLES.get(tuple(tensor.ndim for tensor in variables), names)
                for name, tensor in zip(names, variables, strict=True):
                    if f"{layer}/{name}" in tensors:
                        raise ValueError(f"two tensors are called {layer}/{name}")
                    tensors[f"{layer}/{name}"] = tensor
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _unreadable(path, "Keras' HDF5", error) from error
    if not tensors:
        raise UserError(f"weights: {path} is HDF5 but holds no layers of a Keras model")
    return tensors


def _keras_layers(file) -> Iterator[tuple[str, list[np.ndarray], list[str]]]:
    """Of each layer with variables its name, its variables in order, and the names that they have in the file."""
    # Earlier Keras 3 files, TensorFlow's among them, have the longer name.
    for root in ("layers", "_layer_checkpoint_dependencies"):
        if root in file:
            yield from _keras_3_layers(file[root])
            return
    group = file.get("model_weights", file)
    for layer in _attribute(group, "layer_names"):
        names = _attribute(group[layer], "weight_names")
        if names:
            variables = [np.asarray(group[layer][name]) for name in names]
            yield layer, variables, [name.rsplit("/", 1)[-1].removesuffix(":0") for name in names]


def _keras_3_layers(group) -> Iterator[tuple[str, list[np.ndarray], list[str]]]:
    """The same of a `.weights.h5`, where a layer's group is named for its class: conv2d, conv2d_1, ..."""
    for key in sorted(group, key=_natural_order):
        variables = group[key].get("vars", {})
        if "layers" in group[key]:
            yield from _keras_3_layers(group[key]["layers"])
        if len(variables):
            names = sorted(variables, key=int)
            yield variables.attrs.get("name", key), [np.asarray(variables[name]) for name in names], names


def _attribute(group, name: str) -> list[str]:
    """A list of names; a long one is spread over `name0`, `name1`, ..."""
    parts = sorted((part for part in group.attrs if re.fullmatch(rf"{name}\d*", part)), key=_natural_order)
    return [n.decode() if isinstance(n, bytes) else str(n) for part in parts for n in group.attrs[part]]


def _natural_order(name: str) -> tuple[str, int]:
    """Sorts conv2d, conv2d_1, conv2d_2, ..., conv2d_10."""
    stem, number = re.fullmatch(r"(.*?)_?(\d*)", name).groups()
    return stem, int(number or -1)


def _existing(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    return path


def _unreadable(path: pathlib.Path, kind: str, error) -> UserError:
    return UserError(f"weights: {path} can't be read as {kind} ({error}); it is another kind of file, or cut short")


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
        raise UserError(f"weights: {path} is of no known kind: its name must end in {', '.join(READERS)}")
    return READERS[path.suffix](path)
