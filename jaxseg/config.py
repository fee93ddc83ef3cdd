"""From what the user wrote to what the run does: names and numbers checked, epochs turned to steps, compared."""

import json
import math
import pathlib
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseg import files, forms, protocols
from jaxseg.data import DATASETS, DataInfo, Dataset, data_info
from jaxseg.data.transforms import VARIANTS
from jaxseg.errors import UserError, shown
from jaxseg.lookup import lookup, nearest
from jaxseg.losses import LOSSES
from jaxseg.models import DTYPES, FAMILIES, create_model
from jaxseg.models.pix2pix import Refined, Refiner
from jaxseg.optim import OPTIMIZERS, SCHEDULES
from jaxseg.published import DEFINITIONS

OPEN = ("model.options", "model.backbone_options", "published")  # groups of fields that no default names
DEFAULT = pathlib.Path(__file__).parents[1] / "configs" / "default.py"

# What may differ when a run goes on: how long, how often it tells, and what no result depends on.
MAY_DIFFER = (
    "train.num_steps",
    "train.num_epochs",
    "train.eval_every",
    "train.eval_epochs",
    "train.patience",
    "train.checkpoint_every",
    "train.log_every",
    "data.eval_batch_size",
    "data.workers",
    "train.fsdp",
    "eval.boundary_tolerance",
    "eval.published",
)

# Where the data is and how it is read: what is in it decides, see `check_same_data`.
BY_CONTENT = ("data.dir", "data.version")

NAMES = {
    "data.name": (DATASETS, "data set"),
    "model.name": (FAMILIES, "model"),
    "model.dtype": (DTYPES, "dtype"),
    "optim.name": (OPTIMIZERS, "optimizer"),
    "optim.schedule": (SCHEDULES, "schedule"),
    "eval.protocol": (protocols.WORDS, "protocol"),
    "eval.published": ({"": None, **DEFINITIONS}, "project's definition of scores"),
}

# Field: lowest value, and whether that value itself is allowed.
RANGES = {
    "data.batch_size": (1, True),
    "data.eval_batch_size": (1, True),
    "data.grid_distortion": (0, True),
    "data.elastic": (0, True),
    "data.jitter": (0, True),
    "data.stain": (0, True),
    "data.workers": (0, True),
    **{f"loss.{name}": (0, True) for name in LOSSES},
    "loss.auxiliary": (0, True),
    "loss.label_smoothing": (0, True),
    "refine.lambda_cross_entropy": (0, False),
    "refine.width": (1, True),
    "refine.discriminator_width": (1, True),
    "refine.discriminator_learning_rate": (0, False),
    "optim.learning_rate": (0, False),
    "optim.backbone_lr_scale": (0, True),
    "optim.poly_power": (0, True),
    "optim.plateau_factor": (0, False),
    "optim.plateau_patience": (1, True),
    "optim.plateau_floor": (0, True),
    "optim.warmup_steps": (0, True),
    "optim.weight_decay": (0, True),
    "optim.momentum": (0, True),
    "optim.clip_norm": (0, True),
    "train.num_steps": (0, True),
    "train.num_epochs": (0, True),
    "train.eval_every": (0, True),
    "train.eval_epochs": (0, True),
    "train.checkpoint_every": (1, True),
    "train.log_every": (1, True),
    "train.patience": (0, True),
    "train.accumulate": (1, True),
    "train.ema_decay": (0, True),
    "train.seed": (0, True),
    "eval.stride": (0, True),
    "eval.boundary_tolerance": (0, True),
}


# Fields that the step of the second stage knows nothing of, and their defaults.
WHEN_REFINING = {
    **{f"loss.{name}": 0.0 for name in LOSSES},
    "loss.cross_entropy": 1.0,
    "loss.label_smoothing": 0.0,
    "optim.freeze_backbone": False,
    "train.accumulate": 1,
    "train.remat": False,
    "train.fsdp": False,
    "train.ema_decay": 0.0,
}


def backbone_and_data(family: str, argument: str, default: tuple[str, str]) -> tuple[str, str]:
    """A config's argument `BACKBONE,DATA` as its two names; either may be left out, and takes the default's place.

    Raises:
      UserError: there is no such family, or a word is neither a backbone of it nor a data set; with the nearest names.
    """
    backbones = lookup(FAMILIES, family, "model")
    backbone, data = default
    for word in filter(None, argument.split(",")):
        if word in DATASETS:
            data = word
        else:
            lookup({**backbones, **DATASETS}, word, f"backbone of {family} or data set")
            backbone = word
    return backbone, data


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{'data.name': 'voc', ...}`; tuples as lists, as JSON has them."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def validate(config: ConfigDict) -> None:
    """Refuses what can be seen to be wrong before any data is read.

    Raises:
      UserError: names the field, the value and what is due.
    """
    flat = flatten(config)
    for field, (table, what) in NAMES.items():
        lookup(table, flat[field], f"{what} ({field})")
    for field, (low, inclusive) in RANGES.items():
        if not (flat[field] >= low if inclusive else flat[field] > low):
            due = f"at least {low}" if inclusive else f"more than {low}"
            raise UserError(f"{field} is {flat[field]}: it must be {due}")
    for field in ("loss.label_smoothing", "optim.plateau_factor", "train.ema_decay"):
        if flat[field] >= 1:
            raise UserError(f"{field} is {flat[field]}: it must be less than 1")
    if flat["refine.base"]:
        for field, due in WHEN_REFINING.items():
            if flat[field] != due:
                raise UserError(f"{field} is {flat[field]}: with a refine.base it must be {due}")
    if not any(flat[f"loss.{name}"] for name in LOSSES):
        raise UserError(f"no loss is left to train on: set one of {', '.join(f'loss.{name}' for name in LOSSES)}")
    if flat["optim.plateau_floor"] > flat["optim.learning_rate"]:
        raise UserError(
            f"optim.plateau_floor is {flat['optim.plateau_floor']}: it must be at most optim.learning_rate, "
            f"{flat['optim.learning_rate']}"
        )
    for field, goes_by_scores in (
        ("train.patience", flat["train.patience"] > 0),
        ("optim.schedule", flat["optim.schedule"] == "plateau"),
    ):
        if goes_by_scores and not (flat["train.eval_every"] or flat["train.eval_epochs"]):
            raise UserError(
                f"{field} is {flat[field]}, which goes by evaluations: set train.eval_every or train.eval_epochs, both "
                "are 0"
            )
    if flat["train.eval_every"] and flat["train.eval_epochs"]:
        raise UserError(
            f"train.eval_every is {flat['train.eval_every']} and train.eval_epochs {flat['train.eval_epochs']}: set "
            "one of them and leave the other 0"
        )
    if bool(flat["train.num_steps"]) == bool(flat["train.num_epochs"]):
        raise UserError(
            f"train.num_steps is {flat['train.num_steps']} and train.num_epochs {flat['train.num_epochs']}: set one of "
            "them and leave the other 0"
        )
    class_weights(config)
    build_model(config, num_classes=1)
    crop = config.data.crop_size
    sides = tuple(crop) if isinstance(crop, tuple | list) else (crop, crop)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 32 for side in sides):
        raise UserError(f"data.crop_size is {crop}: it must be a number or (height, width), each at least 32 pixels")
    if config.data.rotate90 and sides[0] != sides[1]:
        raise UserError(f"data.rotate90 is set, but data.crop_size is {crop}: a quarter turn wants a square crop")
    resize = tuple(config.data.resize)
    if resize and (len(resize) != 2 or not all(isinstance(side, int) and side >= 1 for side in resize)):
        raise UserError(f"data.resize is {resize}: it must be (height, width) in pixels, or () for the images' own")
    for variant in config.data.variants:
        lookup(VARIANTS, variant, "variant (data.variants)")
    if config.data.on_device and config.data.variants:
        raise UserError(
            f"data.on_device is set, and data.variants is {tuple(config.data.variants)}: only the host makes these, "
            "leave one of the two out"
        )
    for field in ("grid_distortion", "stain"):
        if config.data[field] >= 1:
            raise UserError(f"data.{field} is {config.data[field]}: it must be less than 1")
    for field in ("mean", "std"):
        values = tuple(config.data[field])
        if values and (len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values)):
            raise UserError(f"data.{field} is {values}: it must be three numbers, of red, green and blue, or ()")
    if not all(0 <= value <= 1 for value in config.data.mean):
        raise UserError(f"data.mean is {tuple(config.data.mean)}: each must be from 0 to 1, for bytes over 255")
    if not all(value > 0 for value in config.data.std):
        raise UserError(f"data.std is {tuple(config.data.std)}: each must be more than 0")
    scale = tuple(config.data.scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UserError(f"data.scale is {scale}: it must be (lowest, highest), both above 0")
    protocols.from_config(config.eval)


def with_normalisation(config: ConfigDict, mean: Sequence[float], std: Sequence[float]) -> ConfigDict:
    """A copy of the config with `data.mean` and `data.std` set, where they are left open, `()`."""
    config = config.copy_and_resolve_references()
    config.data.mean, config.data.std = tuple(config.data.mean or mean), tuple(config.data.std or std)
    return config


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of a config, with a refiner behind it where there is a `refine.base`.

    Raises:
      UserError: its name, backbone, stride or options are none that there are.
    """
    model = config.model
    network = create_model(
        model.name,
        backbone=model.backbone,
        num_classes=num_classes,
        output_stride=model.output_stride or None,
        dtype=model.dtype,
        backbone_options=_options(model.backbone_options),
        **_options(model.options),
    )
    if not config.refine.base:
        return network
    return Refined(network, Refiner(num_classes, config.refine.width, dtype=DTYPES[model.dtype]))


def class_weights(config: ConfigDict) -> str | tuple[float, ...]:
    """`loss.class_weights`: '', 'median_frequency', or the numbers that are written there.

    Raises:
      UserError: it is none of them.
    """
    text = config.loss.class_weights
    try:
        weights = tuple(float(number) for number in text.split(","))
    except ValueError:
        return lookup(
            {kind: kind for kind in ("", "median_frequency")}, text, "kind of class weights (loss.class_weights)"
        )
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(f"loss.class_weights is {text}: they must be numbers of at least 0, one of them more")
    return weights


def _options(options: ConfigDict) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def lock(config: ConfigDict) -> ConfigDict:
    """The config, closed to fields that it has not; open are the networks' own options, which it need not name."""
    config.lock()
    config.model.options.unlock()
    config.model.backbone_options.unlock()
    return config


def num_steps(config: ConfigDict, num_images: int) -> int:
    """How many steps the run takes: as set, or as many as `train.num_epochs` passes over `num_images` fill."""
    if config.train.num_steps:
        return int(config.train.num_steps)
    return max(1, int(config.train.num_epochs * epoch_length(config, num_images) / config.data.batch_size))


def eval_every(config: ConfigDict, num_images: int) -> int:
    """The steps from one evaluation to the next: as set, or as many as `train.eval_epochs` passes fill; 0 for none."""
    if not config.train.eval_epochs:
        return int(config.train.eval_every)
    return max(1, int(config.train.eval_epochs * epoch_length(config, num_images) / config.data.batch_size))


def lower_is_better(score: str, project: str) -> bool:
    """Whether the lowest is the best of a score, named as `train.best` has it, with `eval.published` a `project`."""
    # Project A calls a loss Dice.
    return score == "loss" or (score, project) == ("published/dice", "a")


def epoch_length(config: ConfigDict, num_images: int) -> int:
    """The samples of a pass over `num_images`: with `data.variants` each comes once in each of them."""
    return num_images * max(1, len(config.data.variants))


def to_json(config: ConfigDict) -> str:
    """The config as it is written to the workdir."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def read(workdir: str | pathlib.Path) -> ConfigDict:
    """The config of a run; fields that were not there yet when it began have their defaults, which change nothing.

    Raises:
      UserError: `workdir` holds none, or one with fields that there are not or of another type.
    """
    path = pathlib.Path(workdir) / files.CONFIG
    try:
        written = forms.read_json(path, forms.FORMS[files.CONFIG])
    except FileNotFoundError:
        raise UserError(f"{shown(workdir)} is no workdir of a run: it has no {files.CONFIG}") from None
    defaults = runpy.run_path(str(DEFAULT))["get_config"]()
    for misfit in _misfits(written, defaults):
        raise forms.broken(path, *misfit)
    written = _as_tuples(written)
    config = ConfigDict(_later_fields(written, defaults))
    config.update(written)
    return config


# What JSON has of a field, by the type of its default; the crop's side may be one number or two.
_TYPES = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    tuple: ((list,), "a list"),
}


def _misfits(written: Mapping[str, Any], defaults: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """The fields of a config that there are not, or that are of another type, as `forms.broken` wants them."""
    remedy = forms.FORMS[files.CONFIG].remedy
    for key, value in written.items():
        field, default = prefix + key, defaults.get(key)
        if key not in defaults:
            near = nearest(key, list(defaults)).rstrip(".")
            delete = f"delete that entry, or use the version that wrote it ({near})"
            yield field, value, "left out, for there is no such field", delete
        elif isinstance(default, ConfigDict):
            if not isinstance(value, dict):
                yield field, value, "a group of fields, {...}", remedy
            elif field not in OPEN:
                yield from _misfits(value, default, f"{field}.")
        else:
            kinds, due = (
                ((int, list), "a whole number or a list") if field == "data.crop_size" else _TYPES[type(default)]
            )
            if not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds):
                yield field, value, due, remedy


def _as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were, which flags can set anew."""
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def read_info(workdir: str | pathlib.Path, config: ConfigDict) -> DataInfo:
    """The classes of a run, of its `info.json`; of its data set where the run is from before there was such a file.

    Raises:
      UserError: the file can't be read.
    """
    path = pathlib.Path(workdir) / files.INFO
    try:
        return DataInfo.from_fields(forms.read_json(path, forms.FORMS[files.INFO]))
    except FileNotFoundError:
        return data_info(config.data.name, config.data.version, config.data.dir)


def check_same_classes(info: DataInfo, workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Refuses data whose classes, `info`, are not those that the run in `workdir` was trained with.

    Raises:
      UserError: names both.
    """
    old = read_info(workdir, config).class_names
    if old != info.class_names:
        raise UserError(
            f"{workdir} was trained with the classes {', '.join(old)}; the data has {', '.join(info.class_names)} now: "
            "give it the data it was trained with, or train in another --workdir"
        )


def check_same_data(dataset: Dataset, workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Refuses data at another place than before, or of another version, that is not what the run was trained on.

    What decides is the hash of the splits that are trained and scored on. (Of data that has changed where it is, a run
    that goes on says so.)

    Raises:
      UserError: names the split, both hashes and the place of before.
    """
    old, new = flatten(read(workdir)), flatten(config)
    moved = [field for field in BY_CONTENT if old.get(field, "") != new[field]]
    if not moved:
        return
    then = forms.read_run(workdir).get("contents", {})
    for split in dict.fromkeys((dataset.train_split, config.eval.split or dataset.eval_split)):
        if then.get(split) != dataset.contents.get(split):
            places = ", ".join(f"{field} {shown(old.get(field, '')) or repr('')}" for field in moved)
            raise UserError(
                f"the data of {shown(workdir)} was another: its split {split} had the hash {then.get(split)}, and at "
                f"{shown(new['data.dir']) or 'data.dir'} it has {dataset.contents.get(split)}: give it a copy of what "
                f"it had with {places}, or train in another --workdir"
            )


def _later_fields(written: Mapping[str, Any], defaults: ConfigDict) -> dict[str, Any]:
    """The fields of `defaults`, groups within groups, that `written` lacks."""
    later = {}
    for key, value in defaults.items():
        if key not in written:
            later[key] = value
        elif isinstance(value, ConfigDict) and isinstance(written[key], Mapping):
            later[key] = _later_fields(written[key], value)
    return later


def get_config(workdir: str) -> ConfigDict:
    """This file as a config file, `jaxseg/config.py:WORKDIR`: a finished run's, for `--mode=eval --workdir=WORKDIR`."""
    return read(workdir)


def check_same(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Refuses to go on in a workdir whose run had another config. Where the data lies is `check_same_data`'s to judge.

    Raises:
      UserError: names the fields that differ, with both values.
    """
    old, new = flatten(read(workdir)), flatten(config)
    # What the best score is made of stays.
    fixed = {"published": "eval.published", "boundary_f1": "eval.boundary_tolerance"}.get(
        config.train.best.split("/")[0]
    )
    different = [
        f"{field}: {old.get(field, 'not set')} there, {new.get(field, 'not set')} now"
        for field in sorted({*old, *new})
        if old.get(field) != new.get(field)
        and ((field not in MAY_DIFFER and field not in BY_CONTENT) or field == fixed)
        and not field.startswith("published.")
    ]
    if different:
        raise UserError(
            f"{workdir} holds a run with another config; choose another --workdir, or set these back:\n  "
            + "\n  ".join(different)
        )
