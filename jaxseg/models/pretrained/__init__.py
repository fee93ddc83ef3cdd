"""Weights of other libraries, in and out, by tables of names.

A table (`torchvision.py`, `smp.py`, ...) lists, for every tensor of ours, where it lies in the variables, what the
other library calls it and how its axes lie there. Reading is all or nothing: every tensor of ours must be in the file,
in its shape, and every tensor of the file must be ours, or one of those that a segmentation network has no use for.
What may differ, and is told, is the number of classes, that of the image's channels, and an auxiliary head.

What decides values and leaves no tensor (dilation, corners, BatchNorm's epsilon, padding) each layout lists as its
`form`. Where the model has something else, reading and writing are refused with the option's name, unless the caller
names it in `may_differ`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import UserError, shown
from jaxseg.files import replacing
from jaxseg.lookup import lookup
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import entries, hub, keras, smp, timm, torchvision
from jaxseg.models.pretrained.entries import IMAGENET_MEAN, IMAGENET_STD
from jaxseg.models.pretrained.files import as_array, read_tensors

__all__ = [
    "BACKBONE_LAYOUTS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MODEL_LAYOUTS",
    "Weights",
    "export_weights",
    "load_pretrained",
    "normalisation",
    "read_weights",
]

# A library: its names for a model's tensors, or for a backbone's; None where it has no such network.
MODEL_LAYOUTS = {"smp": smp.model_layout, "torchvision": torchvision.model_layout}
BACKBONE_LAYOUTS = {
    "torchvision": torchvision.backbone_layout,
    "timm": timm.backbone_layout,
    "keras": keras.backbone_layout,
}

# A weights file, its tensors by name, or 'imagenet'.
Source = str | os.PathLike | Mapping[str, Any]

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What `read_weights` found in a source: tensors for a model, and how images were normalised in its training.

    Fields:
      tensors: float32, by their paths in the model's variables.
      mean, std: the normalisation, of RGB images in [0, 1].
      report: lines on what was used, what was left out and what stays as initialised.
    """

    tensors: Mapping[Path, np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    report: tuple[str, ...]

    def into(self, variables: Mapping) -> dict[str, Any]:
        """`variables` with these tensors in their places; the others stay what they are."""
        return unflatten_dict({**flatten_dict(variables, keep_empty_nodes=True), **self.tensors})


def load_pretrained(
    model: nn.Module,
    source: Source,
    *,
    image_size: tuple[int, int] = (64, 64),
    seed: int = 0,
    may_differ: Collection[str] = (),
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Variables of `model` with another library's weights: of a whole segmentation model, or of a classifier.

    The library is recognised by the names of the tensors, and every tensor is used once or reported. Another number of
    classes than the model's keeps all but the last layer; a classifier's file gives the backbone alone; both leave the
    rest freshly initialised. Another number of channels than the three of the file adapts the first kernel as
    segmentation_models_pytorch does: the sum for one channel, else the file's channels in turn, times 3 over their
    number. Networks that saw BGR are turned to take RGB. Images are to be normalised as in training: see
    `normalisation`.

    The same tensors give other values in a network of other dilation, corners, epsilon or padding. The model must have
    in all of that what the library's own network has.

    Args:
      model: what `create_model` gave.
      source: a weights file (.safetensors, .pth, .pt, .h5); or its tensors by name, such as a `state_dict()`; or
        'imagenet', for the backbone's weights from the Hugging Face hub; or what `read_weights` gave.
      image_size: (H, W) to initialise with.
      seed: of what is initialised.
      may_differ: options in which the model is known to differ from the library's own network, because the weights were
        trained so or are to be: 'output_stride', 'rates', 'backbone_options.epsilon'.
      log: takes lines that tell what was used, what was left out, and the normalisation.

    Returns:
      `{'params', 'batch_stats'}`, float32.

    Raises:
      UserError: the source can't be read, or fits none of the layouts known for `model`; the faults of the nearest are
        listed. Or the model differs in an option that leaves no tensor.
    """
    shapes = _shapes(model, image_size)
    weights = source if isinstance(source, Weights) else read_weights(model, source, shapes, may_differ)
    for line in weights.report:
        log(line)
    log(f"they want images less mean {_numbers(weights.mean)}, over std {_numbers(weights.std)}, RGB in [0, 1]")
    variables = weights.into(shapes)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
        # Compiled as one program: run operation by operation it takes many times longer.
        variables = weights.into(jax.jit(_init(model, image_size))(jax.random.key(seed)))
    return variables


def normalisation(
    model: nn.Module, source: Source, may_differ: Collection[str] = ()
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB images in [0, 1] that the weights of `source` were trained with.

    Raises:
      UserError: as `load_pretrained`.
    """
    weights = read_weights(model, source, may_differ=may_differ)
    return weights.mean, weights.std


def read_weights(
    model: nn.Module,
    source: Source,
    shapes: Mapping[str, Any] | None = None,
    may_differ: Collection[str] = (),
) -> Weights:
    """The tensors of `source` that `model` takes; see `load_pretrained`, which puts them into variables.

    Args:
      shapes: variables of the model, arrays or `jax.ShapeDtypeStruct`s, where there are any at hand.
      may_differ: see `load_pretrained`.

    Raises:
      UserError: as `load_pretrained`.
    """
    layouts = _layouts(model)
    name, tensors = _read(source, getattr(model, "backbone", None))
    if not layouts:
        raise UserError(f"weights: {name} can't be used: no library is known to have a {type(model).__name__}")
    flat = flatten_dict(_shapes(model) if shapes is None else shapes)
    fits = [_fit(*layout, tensors, prefix, flat, model) for layout in layouts for prefix in _prefixes(tensors)]
    fit = min(fits, key=lambda fit: (bool(fit.faults), -fit.named, len(fit.faults)))
    layout, what = fit.layout, _called(fit.network)
    if fit.faults:
        tried = dict.fromkeys(layout.name for layout, _ in layouts)
        nearest = f" (the nearest of {', '.join(tried)})" if len(tried) > 1 else ""
        raise UserError(
            f"weights: {name} is not a {what} under {layout.name}'s names{nearest}:\n  {_listed(fit.faults)}"
        )
    differ = _differences(model, layout, may_differ)
    if differ.keys() - set(may_differ):
        raise UserError(f"weights: {name} is {layout.name}'s {what}, but {refused(differ, may_differ)}")
    if twin := next((twin for twin in layout.twins if not isinstance(source, Mapping) and twin in str(source)), None):
        raise UserError(
            f"weights: {name} is by its name timm's {twin}, which has the tensors of a {what} and gives other values: "
            "give the file of another network, or rename this one if it is none"
        )

    loaded = {entry.path: _convert(entry, tensor, layout, flat[entry.path].shape) for entry, tensor in fit.found}
    for entry, _ in fit.found:
        values = loaded[entry.path]
        if not np.isfinite(values).all() or (entry.path[-1] == "var" and values.min(initial=0) < 0):
            what = "negative variances" if np.isfinite(values).all() else "values that are not finite"
            raise UserError(f"weights: {name} is damaged: {shown(entry.name)} has {what}; take another file")
    left_out = f", {fit.left_out} without use here left out (classifier, step counters)" if fit.left_out else ""
    report = [f"{len(loaded)} tensors of {what} from {name}, under {layout.name}'s names{left_out}", *fit.notes]
    if fit.network is not model:
        beside = dict.fromkeys(path[1] for path in flat if path not in loaded)
        report.append(f"initialised anew, for a classifier has none: {', '.join(beside)}")
    report += [
        f"{option} is {ours} here and {theirs} in {layout.name}'s own network: allowed by may_differ"
        for option, (theirs, ours) in differ.items()
    ]
    if taken := [
        f"{option} {layout.form.get(option, '')}".strip() for option in layout.choices if option not in differ
    ]:
        report.append(f"taken for {layout.name}'s default form, as no file tells: {', '.join(taken)}")
    if layout.twins:
        report.append(f"timm's {', '.join(layout.twins)} have the same tensors and other values: no file tells")
    return Weights(loaded, layout.mean, layout.std, tuple(report))


def export_weights(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: str | os.PathLike,
    layout: str,
    *,
    may_differ: Collection[str] = (),
) -> None:
    """Writes `variables` as safetensors under another library's names; its model loads them strictly.

    Whole or not at all: what stood at `path` before stays there until the new file is complete. Layers of the backbone
    that the network stops before are not in `variables`; the other library keeps them without use, so they are written
    as zeros.

    Args:
      model: the network of the variables.
      path: a name that ends in .safetensors.
      layout: the library, 'smp' or 'torchvision'.
      may_differ: options in which the model may differ from what the library builds by default, because the library is
        told them as well ('output_stride' and 'rates' of SMP) or another result is wanted; see `load_pretrained`.

    Raises:
      UserError: that library has no such network, or not with the model's options; the variables are those of another
        model; or `path` can't be written.
    """
    from safetensors.numpy import save

    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"export: {path} would be a safetensors file: give it a name that ends in .safetensors")
    found = lookup(MODEL_LAYOUTS, layout, "layout")(model)
    if found is None:
        others = [name for name, find in MODEL_LAYOUTS.items() if find(model)]
        there = f": there is {' and '.join(others)}" if others else ", nor has any other"
        raise UserError(f"export: {layout} has no {type(model).__name__} on this backbone{there}")
    differ = _differences(model, found, may_differ)
    if differ.keys() - set(may_differ):
        raise UserError(f"export: {layout} has such a {type(model).__name__}, but {refused(differ, may_differ)}")
    flat, shapes = flatten_dict(variables), flatten_dict(_shapes(model))
    faults = [f"missing {'/'.join(key)} {shapes[key].shape}" for key in shapes if key not in flat]
    faults += [f"left over {'/'.join(map(str, key))}" for key in flat if key not in shapes]
    faults += [
        f"{'/'.join(key)} is {np.shape(flat[key])}, {shape.shape} is due"
        for key, shape in shapes.items()
        if key in flat and np.shape(flat[key]) != shape.shape
    ]
    named = {entry.path for entry in found.entries}
    faults += [f"{layout} has no name for {'/'.join(key)}" for key in shapes if key not in named]
    if faults:
        raise UserError(f"export: the variables are not those of a {type(model).__name__}:\n  {_listed(faults)}")
    if named - flat.keys():
        flat = _without_use(model) | flat
    content = save({entry.name: _revert(entry, flat[entry.path]) for entry in found.entries}, {"format": "pt"})
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"export: {path} can't be written ({error.strerror or error})") from error


# ---------------------------------------------------------------------------------------------------------- the model


def _init(
    model: nn.Module, image_size: tuple[int, int], channels: int | None = None
) -> Callable[[jax.Array], dict[str, Any]]:
    def init(key):
        variables = model.init(key, jnp.zeros((1, *image_size, channels or model.in_channels)), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    return init


def _shapes(model: nn.Module, image_size: tuple[int, int] = (64, 64), channels: int | None = None) -> dict[str, Any]:
    """The shapes of a model's variables; nothing is computed."""
    return jax.eval_shape(_init(model, image_size, channels), jax.random.key(0))


def backbone_name(backbone: nn.Module) -> str:
    """The name in `BACKBONES`: of all modules of its type, that which has most fields alike."""

    def alike(name):
        reference = BACKBONES[name]()
        if type(reference) is not type(backbone):
            return -1
        fields = (field.name for field in dataclasses.fields(reference) if field.name not in ("name", "parent"))
        return sum(getattr(reference, field) == getattr(backbone, field) for field in fields)

    best = max(BACKBONES, key=alike)
    return best if alike(best) >= 0 else type(backbone).__name__


def _called(network: nn.Module) -> str:
    """What messages call a network: its class, and a backbone its name."""
    return backbone_name(network) if hasattr(network, "output_stride") else type(network).__name__


def _without_use(model: nn.Module) -> dict[Path, np.ndarray]:
    """Zeros for all of a model's backbone, where it lies in the model's variables."""
    return {
        (path[0], "backbone", *path[1:]): np.zeros(shape.shape, np.float32)
        for path, shape in flatten_dict(_shapes(model.backbone, channels=model.in_channels)).items()
    }


def _layouts(model: nn.Module) -> list[tuple[entries.Layout, nn.Module]]:
    """What a file for `model` may hold: all of it under a library's names, or a classifier, which has the backbone."""
    layouts = [(layout, model) for find in MODEL_LAYOUTS.values() if (layout := find(model))]
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        if layout := torchvision.classifier_layout(model):
            layouts.append((layout, backbone))
        for find in BACKBONE_LAYOUTS.values():
            if layout := find(backbone):
                within = tuple(entries.within(("backbone",), "", layout.entries))
                layouts.append((layout._replace(entries=within), backbone))
    return layouts


# ---------------------------------------------------------------------------------------------------------- the source


def _read(source: Source, backbone: nn.Module | None) -> tuple[str, dict[str, np.ndarray]]:
    """What to call the source, and its tensors."""
    if isinstance(source, Mapping):
        tensors = {}
        for name, tensor in source.items():
            if not isinstance(name, str):
                raise UserError(f"weights: the tensors given have a name that is no text, {shown(name)}")
            try:
                tensors[name] = as_array(tensor)
            except (TypeError, RuntimeError, ValueError) as error:
                raise UserError(f"weights: the tensor {shown(name)} is no dense one of floats ({error})") from error
        return "the tensors given", tensors
    if source != "imagenet":
        if not pathlib.Path(source).suffix and not os.path.exists(source):
            raise UserError(f"weights: '{shown(source)}' is neither 'imagenet' nor the path of a weights file")
        return shown(source), read_tensors(source)
    if backbone is None:
        raise UserError("weights: 'imagenet' is for backbones, and this network has an encoder of its own: give a file")
    name = backbone_name(backbone)
    path = hub.fetch(name)
    return f"{hub.IMAGENET[name].repo} of the hub", read_tensors(path)


def _prefixes(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """'' and what all names begin with, such as the `module.` of a DataParallel: ['', 'module.', ...]."""
    prefixes, (first, *rest) = [""], list(tensors) or [""]
    for part in first.split(".")[:-1]:
        prefix = f"{prefixes[-1]}{part}."
        if not all(name.startswith(prefix) for name in rest):
            break
        prefixes.append(prefix)
    return prefixes


# ---------------------------------------------------------------------------------------------------------- the match


class _Fit(NamedTuple):
    """How a source fits a layout of `network`; without faults it can be loaded."""

    layout: entries.Layout
    network: nn.Module
    named: int  # tensors that both have
    found: list[tuple[entries.Entry, np.ndarray]]  # what is to be loaded
    left_out: int  # tensors that the layout calls without use
    notes: list[str]
    faults: list[str]


def _fit(
    layout: entries.Layout,
    network: nn.Module,
    tensors: Mapping[str, np.ndarray],
    prefix: str,
    shapes: Mapping[Path, Any],
    model: nn.Module,
) -> _Fit:
    """How `tensors`, whose names are taken without `prefix`, fit a layout; nothing is converted yet."""
    tensors = layout.rename({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    found, notes, faults, heads, absent, behind = [], [], [], {}, [], []
    lacking = tuple(start for start in layout.auxiliary if not any(name.startswith(start) for name in tensors))
    for entry in layout.entries:
        if entry.path[1] == "backbone" and entry.path not in shapes:
            behind.append(entry.name)
            continue
        due = shapes[entry.path].shape
        if entry.name not in tensors:
            if entry.name.startswith(lacking):
                absent.append(entry.name)
            else:
                faults.append(f"missing {entry.name} {entry.their_shape(due)}")
            continue
        tensor = tensors[entry.name]
        shape = entry.our_shape(tensor.shape) or ()
        if tensor.dtype.kind != "f":
            faults.append(f"{entry.name} is {tensor.dtype}, a float is due")
        elif entry.role == "head" and (classes := _classes(shape, due, model.num_classes)):
            heads.setdefault(entry.path[1:-1], []).append((classes, entry, tensor))
        elif entry.role == "stem" and shape == (*due[:2], 3, due[3]):
            if due[2] != 3:
                notes.append(_stem_note(due[2]))
            found.append((entry, tensor))
        elif shape == due and not (entry.role == "stem" and layout.bgr):
            found.append((entry, tensor))
        else:
            faults.append(f"{entry.name} is {tensor.shape}, {entry.their_shape(due)} is due")

    renewed: dict[int, list[str]] = {}
    for module, tensors_of in heads.items():
        counts = {classes for classes, *_ in tensors_of}
        if counts == {model.num_classes}:
            found += [(entry, tensor) for _, entry, tensor in tensors_of]
        elif len(counts) == 1:
            renewed.setdefault(counts.pop(), []).append("/".join(module))
        else:
            faults += [
                f"{entry.name} has {classes} classes, others of its layer not" for classes, entry, _ in tensors_of
            ]
    for classes, modules in renewed.items():
        have = "has" if len(modules) == 1 else "have"
        notes.append(
            f"the {' and the '.join(modules)} {have} {classes} classes in the file and {model.num_classes} here: "
            "initialised anew"
        )
    if absent:
        notes.append(f"the auxiliary head's {len(absent)} tensors are not in the file: initialised anew")

    paths, names = {entry.path for entry in layout.entries}, {entry.name for entry in layout.entries}
    own = [path for path in shapes if path not in paths and (network is model or path[1] == "backbone")]
    faults += [f"no name for {'/'.join(path)}" for path in own if not path[1].startswith("aux")]
    if any(path[1].startswith("aux") for path in own):
        notes.append(f"{layout.name} has no auxiliary head here: initialised anew")
    rest = [name for name in tensors if name not in names]
    unused = [name for name in rest if layout.unused(name)]
    beside = [name for name in rest if name not in unused and name.startswith(layout.auxiliary)]
    if beside:
        notes.append(f"the auxiliary head's {len(beside)} tensors are left out: the model here has none")
    known = {*unused, *beside}
    faults += [f"left over {shown(name)} {tensors[name].shape}" for name in rest if name not in known]
    if behind and (count := sum(name in tensors for name in behind)):
        notes.append(f"{count} tensors of layers that {type(model).__name__} stops before are left out")
    if layout.bgr:
        notes.append("the network saw BGR: its first kernel is turned to take RGB")
    if prefix:
        notes.append(f"all names begin with {shown(prefix)}, which is taken away")
    named = sum(name in tensors for name in names)
    return _Fit(layout, network, named, found, len(unused), notes, faults)


def _differences(model: nn.Module, layout: entries.Layout, may_differ: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """The options in which a model is not the library's own network: theirs and ours.

    Raises:
      UserError: a name in `may_differ` is no option of the model.
    """
    check_may_differ(model, may_differ)
    both = {name: (theirs, entries.option(model, name)) for name, theirs in layout.form.items()}
    return {name: (theirs, ours) for name, (theirs, ours) in both.items() if theirs != ours}


def check_may_differ(model: nn.Module, may_differ: Collection[str]) -> None:
    """Raises a `UserError` where a name in `may_differ` is no option of the model."""
    if isinstance(may_differ, str):
        raise UserError(f"may_differ is '{shown(may_differ)}': it must be a list of names, ['{shown(may_differ)}']")
    for name in may_differ:
        entries.option(model, name)


def refused(differ: Mapping[str, tuple[Any, Any]], may_differ: Collection[str]) -> str:
    """What is wrong with differences, theirs and ours by option, that `may_differ` does not allow, and what to do."""
    left = {name: pair for name, pair in differ.items() if name not in may_differ}
    what = ", ".join(f"{name} is {theirs} there and {ours} here" for name, (theirs, ours) in left.items())
    flags = (
        f"--config.model.{name if name == 'output_stride' or '.' in name else f'options.{name}'}={theirs}"
        for name, (theirs, _) in left.items()
    )
    return (
        f"{what}: the same tensors give other values so. Make the model with theirs ({' '.join(flags)}), or, where you "
        f"know that it is right, name what may differ (may_differ={sorted(left)}, "
        f"--config.model.may_differ={','.join(sorted(left))})"
    )


def _classes(theirs: Sequence[int], ours: Sequence[int], num_classes: int) -> int | None:
    """The number of classes of a last layer's tensor, by its shape; None where another axis differs too."""
    different = [(their, our) for their, our in zip(theirs, ours, strict=False) if their != our]
    if len(theirs) != len(ours) or any(our != num_classes for _, our in different):
        return None
    counts = {their for their, _ in different}
    return num_classes if not counts else counts.pop() if len(counts) == 1 else None


def _stem_note(channels: int) -> str:
    if channels == 1:
        return "the first kernel has 3 channels in the file and 1 here: their sum"
    return f"the first kernel has 3 channels in the file and {channels} here: those 3 in turn, times 3/{channels}"


def _convert(entry: entries.Entry, tensor: np.ndarray, layout: entries.Layout, due: tuple[int, ...]) -> np.ndarray:
    """A tensor as it lies here; the first kernel for RGB and for as many channels as are due."""
    ours = entry.to_ours(tensor)
    if entry.role != "stem":
        return ours
    if layout.bgr:
        ours = ours[:, :, ::-1]
    if ours.shape[2] != due[2]:
        turns = [ours[:, :, i % 3] for i in range(due[2])]
        ours = ours.sum(2, keepdims=True) if due[2] == 1 else np.stack(turns, 2) * np.float32(3 / due[2])
    return np.ascontiguousarray(ours)


def _revert(entry: entries.Entry, tensor: Any) -> np.ndarray:
    """The inverse of `_convert`, but for the number of channels, which stays."""
    return entry.to_theirs(np.asarray(tensor, np.float32))


def _listed(faults: Sequence[str]) -> str:
    return "\n  ".join([*faults[:12], *([f"... and {len(faults) - 12} more"] if len(faults) > 12 else [])])


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
