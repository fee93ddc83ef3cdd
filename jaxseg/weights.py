"""What training starts from: weights of a file, of the hub, or of a run of one's own.

A run is given by its workdir, or by one of its checkpoints below it. Its network is known whole, so every option of it
that decides values must be the same in the model at hand, as with files (`jaxseg.models.pretrained`), or be named in
`may_differ`. What may differ, and is told, is the number of classes and an auxiliary head.
"""

import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxseg import config as configs
from jaxseg import files
from jaxseg.errors import UserError, shown
from jaxseg.models import pretrained
from jaxseg.models.pretrained import Source, Weights
from jaxseg.predict import load
from jaxseg.state import abstract_variables

# Fields that no value in evaluation depends on, or that this module looks at by itself.
_FREE = {"dropout", "aux_dropout", "momentum", "dtype", "name", "parent", "backbone", "num_classes", "aux_head"}


def load_pretrained(
    model: nn.Module,
    source: Source,
    *,
    image_size: tuple[int, int] = (64, 64),
    seed: int = 0,
    may_differ: Collection[str] = (),
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Variables of `model` with the weights of a file, of the hub or of a run.

    Of a run with another number of classes all but the last layer is taken. Files and the hub:
    see `jaxseg.models.pretrained.load_pretrained`, which has the other arguments too.

    Args:
      model: what `create_model` gave.
      source: the workdir of a run, for its best checkpoint, or `WORKDIR/checkpoints/latest/STEP` for a certain one; or
        a weights file; or its tensors by name; or 'imagenet'.
      image_size: (H, W) to initialise with.
      seed: of what is initialised.
      may_differ: options in which the model may differ from the weights' network.
      log: takes lines that tell what was used, what was left out, and the normalisation.

    Returns:
      `{'params', 'batch_stats'}`, float32.

    Raises:
      UserError: the source can't be read, or is of another network.
    """
    if is_folder(source):
        source = of_run(model, source, may_differ)
    return pretrained.load_pretrained(model, source, image_size=image_size, seed=seed, may_differ=may_differ, log=log)


def tensors_of(
    model: nn.Module, source: Source, may_differ: Collection[str] = (), class_names: Sequence[str] = ()
) -> Weights:
    """The tensors of `source` that `model` takes; `load_pretrained` puts them into variables.

    Args:
      class_names: of the model, where they are known. The last layer of a run is taken only if it has the same.

    Raises:
      UserError: as `load_pretrained`.
    """
    if is_folder(source):
        return of_run(model, source, may_differ, class_names)
    return pretrained.read_weights(model, source, may_differ=may_differ)


def is_folder(source: Source) -> bool:
    """Whether a source can only be a run."""
    return not isinstance(source, Mapping) and os.path.isdir(source)


def of_run(
    model: nn.Module, folder: str | os.PathLike, may_differ: Collection[str] = (), class_names: Sequence[str] = ()
) -> Weights:
    """The tensors of a run that `model` takes; see `tensors_of`.

    Raises:
      UserError: `folder` is no run, has no such checkpoint, or is of another network.
    """
    workdir, which = _workdir(pathlib.Path(folder))
    if not (workdir / files.CONFIG).exists():
        raise UserError(
            f"weights: {shown(folder)} is a folder and no workdir of a run (it has no {files.CONFIG}): give that of a "
            "run, or a weights file"
        )
    run = load(workdir, checkpoint=which)
    theirs, name = run.model, shown(folder)
    if _kind(theirs) != _kind(model):
        raise UserError(
            f"weights: {name} is a run of {_kind(theirs)}, and the model here is {_kind(model)}: make it the same, "
            f"with all options by --config={configs.__file__}:{name}"
        )
    flat = flatten_dict(jax.tree.map(np.asarray, run.variables))
    ours, as_ours = (flatten_dict(abstract_variables(m)) for m in (model, theirs.clone(num_classes=model.num_classes)))
    others = flatten_dict(abstract_variables(theirs.clone(num_classes=theirs.num_classes + 1)))
    heads = {path for path, tensor in flat.items() if others[path].shape != tensor.shape}
    auxiliary = {path for path in ours.keys() ^ as_ours.keys() if path[1].startswith("aux")}
    faults = [
        f"{'/'.join(path)} is {as_ours[path].shape if path in as_ours else 'not'} there and "
        f"{ours[path].shape if path in ours else 'not'} here"
        for path in sorted(ours.keys() | as_ours.keys())
        if path not in auxiliary
        and (path not in ours or path not in as_ours or ours[path].shape != as_ours[path].shape)
    ]
    differ = _differing(theirs, model)
    if faults:
        told = [f"{option} is {there} there and {here} here" for option, (there, here) in differ.items()] or faults[:3]
        raise UserError(
            f"weights: {name} is a run of another form of {_kind(theirs)}, {', '.join(told)}: make the model with its "
            f"options, as jaxseg.load('{name}').model.clone(num_classes={model.num_classes}) has them"
        )
    pretrained.check_may_differ(model, may_differ)
    if differ.keys() - set(may_differ):
        raise UserError(f"weights: {name} is a run of {_kind(model)}, but {pretrained.refused(differ, may_differ)}")
    report = []
    if run.info.num_classes != model.num_classes:
        report.append(
            f"the last layer has {run.info.num_classes} classes there and {model.num_classes} here: initialised anew"
        )
    elif class_names and tuple(class_names) != tuple(run.info.class_names):
        report.append(
            f"the last layer has the classes {_listed(run.info.class_names)} there and {_listed(class_names)} here: "
            "initialised anew"
        )
    else:
        heads = set()
    if auxiliary:
        what = "left out" if getattr(theirs, "aux_head", False) else "not there: initialised anew"
        report.append(f"the auxiliary head's {len(auxiliary)} tensors are {what}")
    report += [f"{option} is {b} here and {a} there: allowed by may_differ" for option, (a, b) in differ.items()]
    tensors = {path: tensor for path, tensor in flat.items() if path in ours and path not in heads}
    first = f"{len(tensors)} tensors of {_kind(theirs)} from step {run.step} of the run {name}"
    return Weights(tensors, tuple(run.mean), tuple(run.std), (first, *report))


def _workdir(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The run that a folder is, or is a checkpoint of, and which checkpoint."""
    parts = folder.absolute().parts
    if files.CHECKPOINTS not in parts[-3:]:
        return folder, "best"
    at = len(parts) - 1 - parts[::-1].index(files.CHECKPOINTS)
    below = parts[at + 1 :]
    return pathlib.Path(*parts[:at]), below[-1] if below else "best"


def _kind(model: nn.Module) -> str:
    backbone = getattr(model, "backbone", None)
    return type(model).__name__ + (f" on {pretrained.backbone_name(backbone)}" if backbone is not None else "")


def _options(model: nn.Module) -> dict[str, Any]:
    """All options of a network by the names that `may_differ` has, but those of `_FREE`."""
    backbone = getattr(model, "backbone", None)
    inner = {} if backbone is None else {name: getattr(backbone, name) for name in backbone.__dataclass_fields__}
    named = {name: getattr(model, name) for name in model.__dataclass_fields__ if name not in _FREE}
    for name, value in inner.items():
        if name not in _FREE:
            named[name if name == "output_stride" else f"backbone_options.{name}"] = value
    return named


def _differing(theirs: nn.Module, ours: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The options in which two networks of one kind differ: theirs and ours."""
    there, here = _options(theirs), _options(ours)
    return {name: (there[name], here[name]) for name in there if there[name] != here[name]}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (", ..." if len(names) > 5 else "")
