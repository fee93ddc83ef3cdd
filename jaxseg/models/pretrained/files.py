"""Weight files to tensors by name."""

import json
import pathlib

import numpy as np

from jaxseg.errors import UserError


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file.

    Raises:
      UserError: there is no such file, or it is none of that kind, or it is cut short.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, json.JSONDecodeError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"weights: {path} can't be read as safetensors ({error}); it is another kind of file, or cut short"
        ) from error


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a weights file, by the names that it gives them; float16 and bfloat16 ones too.

    Raises:
      UserError: there is no such file, it is of no known kind, cut short, or would execute code.
    """
    return read_safetensors(path)
