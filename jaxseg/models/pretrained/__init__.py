"""Weights of other libraries, in and out, by tables of names.

A table (`torchvision.py`, `smp.py`, ...) lists, for every tensor of ours, where it lies in the variables, what the
other library calls it and how its axes lie there. Reading is all or nothing: every tensor of ours must be in the file,
in its shape, and every tensor of the file must be ours, or one of those that a segmentation network has no use for.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import UserError
from jaxseg.models.pretrained import entries, smp, torchvision
from jaxseg.models.pretrained.files import read_tensors

MODEL_LAYOUTS = {"smp": smp.model_layout, "torchvision": torchvision.model_layout}
BACKBONE_LAYOUTS = {"torchvision": torchvision.backbone_layout}


def load_backbone(model: nn.Module, variables: Mapping, path: str | pathlib.Path) -> tuple[dict, str]:
    """`variables` of a segmentation model with its backbone's tensors taken from a classifier's file.

    Args:
      model: the network.
      variables: `{'params': {'backbone': ..., ...}, 'batch_stats': {...}}`; arrays or `jax.ShapeDtypeStruct`s.
      path: the file.

    Returns:
      New variables of the same structure, float32 numpy arrays where they were read, and one line that says how many
      tensors were used and which were left out.

    Raises:
      UserError: the file can't be read, or a tensor is missing, left over or of another shape; all are listed.
    """
    if getattr(model, "backbone", None) is None:
        raise UserError(f"weights: {path} can't be used: {type(model).__name__} has no backbone")
    layouts = [layout for find in BACKBONE_LAYOUTS.values() if (layout := find(model.backbone))]
    layouts = [layout._replace(entries=tuple(entries.within(("backbone",), "", layout.entries))) for layout in layouts]
    return _load(variables, read_tensors(path), layouts, str(path), type(model.backbone).__name__)


def load_pretrained(
    model: nn.Module,
    source: str | pathlib.Path | Mapping[str, np.ndarray],
    *,
    image_size: tuple[int, int] = (64, 64),
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Variables of `model` with all tensors of another library's segmentation model, or of a classifier's backbone.

    Args:
      model: what `create_model` gave.
      source: a weights file, or its tensors by name.
      image_size: (H, W) to initialise with what the source doesn't have.
      log: takes one line on what was used and what was not.

    Returns:
      `{'params', 'batch_stats'}`, float32.

    Raises:
      UserError: the source fits none of the layouts known for `model`; the faults of the nearest are listed.
    """

    def init(key):
        variables = model.init(key, jnp.zeros((1, *image_size, model.in_channels)), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    shapes = jax.eval_shape(init, jax.random.key(0))
    tensors = dict(source) if isinstance(source, Mapping) else read_tensors(source)
    name = "the tensors given" if isinstance(source, Mapping) else str(source)
    layouts = [layout for find in MODEL_LAYOUTS.values() if (layout := find(model))]
    variables, report = _load(shapes, tensors, layouts, name, type(model).__name__)
    log(report)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
        # Compiled as one program: run operation by operation it takes many times longer.
        fresh = jax.jit(init)(jax.random.key(0))
        variables = jax.tree.map(
            lambda ours, new: new if isinstance(ours, jax.ShapeDtypeStruct) else ours, variables, fresh
        )
    return variables


def export_weights(model: nn.Module, variables: Mapping, path: str | os.PathLike, layout: str) -> None:
    """Writes `variables` as safetensors under another library's names; its model loads them strictly.

    Raises:
      UserError: that library has no such network.
    """
    from safetensors.numpy import save_file

    found = MODEL_LAYOUTS[layout](model) if layout in MODEL_LAYOUTS else None
    if found is None:
        raise UserError(f"export: '{layout}' has no {type(model).__name__}: there are {', '.join(MODEL_LAYOUTS)}")
    flat = flatten_dict(variables)
    tensors = {entry.name: entry.to_theirs(flat[entry.path]) for entry in found.entries}
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _load(
    variables: Mapping, tensors: Mapping[str, np.ndarray], layouts: Sequence[entries.Layout], source: str, what: str
) -> tuple[dict, str]:
    """The variables with the tensors of the layout that names most of them."""
    if not layouts:
        raise UserError(f"weights: {source} can't be used: no library is known to have a {what}")
    layout = max(layouts, key=lambda layout: sum(entry.name in tensors for entry in layout.entries))
    flat = flatten_dict(variables)
    faults, loaded = [], {}
    for entry in layout.entries:
        due = entry.their_shape(flat[entry.path].shape)
        if entry.name not in tensors:
            faults.append(f"missing {entry.name} {due}")
        elif tensors[entry.name].shape != due:
            faults.append(f"{entry.name} is {tensors[entry.name].shape}, {due} is due")
        else:
            loaded[entry.path] = entry.to_ours(tensors[entry.name])
    names = {entry.name for entry in layout.entries}
    rest = [name for name in tensors if name not in names]
    faults += [f"left over {name} {tensors[name].shape}" for name in rest if not layout.unused(name)]
    if faults:
        shown = "\n  ".join(faults[:12] + ([f"... and {len(faults) - 12} more"] if len(faults) > 12 else []))
        raise UserError(f"weights: {source} is not a {what} under {layout.name}'s names:\n  {shown}")
    left_out = f", {len(rest)} without use here left out (classifier, step counters)" if rest else ""
    return unflatten_dict({**flat, **loaded}), f"{len(loaded)} tensors of {what} from {source}{left_out}"
