"""From what the user wrote to what the run does: names and numbers checked, epochs turned to steps, compared."""

import functools
import json
import pathlib
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseg import files, forms, protocols
from jaxseg.data import DATASETS, DataInfo, Dataset, data_info
from jaxseg.errors import UserError, shown
from jaxseg.fields import CLASS_WEIGHT, FIELDS, MANY, Name, check, shown_value
from jaxseg.lookup import lookup, nearest
from jaxseg.losses import LOSSES
from jaxseg.models import DTYPES, FAMILIES, check_options, create_model
from jaxseg.models.pix2pix import Refined, Refiner

# Groups of fields that no default names: options of networks, which `create_model` checks, and published figures.
OPEN = ("model.options", "model.backbone_options", "published")
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


# Beyond these no machine holds a batch, or an image that is brought to a size.
MOST_PIXELS_OF_A_BATCH, MOST_PIXELS_OF_AN_IMAGE = 2**30, 2**27

# Greatest rate of optimizers whose steps are as large whatever the gradient is; and of SGD, times the losses' weights.
MOST_RATE, MOST_SGD = 0.3, 10

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
    flat = check_fields(config)
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
    _check_rate(flat)
    class_weights(config)
    build_model(config, num_classes=1)
    crop = config.data.crop_size
    if config.data.rotate90 and isinstance(crop, tuple | list) and crop[0] != crop[1]:
        raise UserError(f"data.rotate90 is set, but data.crop_size is {crop}: a quarter turn wants a square crop")
    _check_pixels(config)
    variants = tuple(config.data.variants)
    if len(variants) > 1 and len(set(variants)) == 1:
        raise UserError(f"data.variants is {variants}: the same for all makes nothing but longer epochs, give it once")
    if config.data.on_device and variants:
        raise UserError(
            f"data.on_device is set, and data.variants is {variants}: only the host makes these, leave one of the two "
            "out"
        )
    scale = tuple(config.data.scale)
    if scale[0] > scale[1]:
        raise UserError(f"data.scale is {scale}: it must be (lowest, highest)")
    protocols.from_config(config.eval)


def check_fields(config: ConfigDict) -> dict[str, Any]:
    """The config, flat, every field of which `jaxseg.fields` allows: none is missing, none is not in the table.

    Raises:
      UserError: names the field, the value and what is due.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config is a {type(config).__name__}: give a ConfigDict as configs/default.py makes it")
    flat = flatten(config)
    groups = dict.fromkeys(field.partition(".")[0] for field in FIELDS)
    for group in (*groups, *OPEN):
        value = functools.reduce(lambda group, word: group.get(word), group.split("."), config)
        if not isinstance(value, ConfigDict):
            raise UserError(f"{group} is {shown_value(value)}: it must be a group of fields, see configs/default.py")
    for field in FIELDS:
        if field not in flat:
            raise UserError(f"there is no {field} in the config: start from configs/default.py, which has every field")
    for field, value in flat.items():
        if field in FIELDS:
            check(field, FIELDS[field], value)
        elif not field.startswith(tuple(f"{group}." for group in OPEN)):
            raise UserError(f"there is no field {shown(field)}: {nearest(field, FIELDS)}")
        elif field.startswith("published.") and not isinstance(value, str | int | float):
            raise UserError(f"{shown(field)} is {shown_value(value)}: it must be text or a number")
    return flat


def _check_rate(flat: Mapping[str, Any]) -> None:
    """Refuses a first step so large that the second loss may be no number, in a network without norms."""
    field = f"optim.learning_rate is {flat['optim.learning_rate']}"
    rate = flat["optim.learning_rate"] * max(1, flat["optim.backbone_lr_scale"])
    if flat["optim.name"] != "sgd" and rate > MOST_RATE:
        raise UserError(
            f"{field} (optim.backbone_lr_scale {flat['optim.backbone_lr_scale']}): with {flat['optim.name']}, which "
            f"moves every weight by about as much a step, it must be at most {MOST_RATE}"
        )
    weights = sum(flat[f"loss.{name}"] for name in LOSSES)
    if flat["optim.name"] == "sgd" and rate * weights > MOST_SGD:
        raise UserError(
            f"{field} (optim.backbone_lr_scale {flat['optim.backbone_lr_scale']}), and the losses' weights are "
            f"{weights:g} together: with sgd the product must be at most {MOST_SGD}"
        )


def _check_pixels(config: ConfigDict) -> None:
    """Refuses sizes whose pixels no machine holds; what this one holds is asked when the steps are made."""
    data, scored = config.data, config.eval
    for field, size, images, most in (
        ("data.crop_size", data.crop_size, "data.batch_size", MOST_PIXELS_OF_A_BATCH),
        ("data.resize", data.resize, "", MOST_PIXELS_OF_AN_IMAGE),
        ("eval.size", scored.size, "data.eval_batch_size", MOST_PIXELS_OF_A_BATCH),
    ):
        sides = size if isinstance(size, tuple | list) else (size,)
        rows = data[images.removeprefix("data.")] if images else 1
        pixels = rows * sides[0] * sides[-1] if sides else 0
        if pixels > most:
            of, less = (f" of {rows} images ({images})", "one of the two") if images else ("", "it")
            raise UserError(f"{field} is {size}{of}, {pixels:,} pixels: at most {most:,} are taken, make {less} less")


def with_normalisation(config: ConfigDict, mean: Sequence[float], std: Sequence[float]) -> ConfigDict:
    """A copy of the config with `data.mean` and `data.std` set, where they are left open, `()`."""
    config = config.copy_and_resolve_references()
    config.data.mean, config.data.std = tuple(config.data.mean or mean), tuple(config.data.std or std)
    return config


def check_normalised(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Refuses the config of a run without the normalisation that it wrote there when it began.

    Raises:
      UserError: names the entry.
    """
    for field in ("mean", "std"):
        if len(config.data[field]) != 3:
            path, remedy = pathlib.Path(workdir) / files.CONFIG, forms.FORMS[files.CONFIG].remedy
            raise forms.broken(path, f"data.{field}", config.data[field], "three numbers", remedy)


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of a config, with a refiner behind it where there is a `refine.base`.

    Raises:
      UserError: its name, backbone, stride or options are none that there are.
    """
    model = config.model
    check_options(model.name, model.backbone, model.options.to_dict(), model.backbone_options.to_dict(), "model.")
    network = create_model(
        model.name,
        backbone=model.backbone,
        num_classes=num_classes,
        output_stride=model.output_stride or None,
        dtype=model.dtype,
        backbone_options=model.backbone_options.to_dict(),
        **model.options.to_dict(),
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
        if not text.isascii():
            raise ValueError
        weights = tuple(float(number) for number in text.split(","))
    except ValueError:
        return lookup(
            {kind: kind for kind in ("", "median_frequency")}, text, "kind of class weights (loss.class_weights)"
        )
    for weight in weights:
        check("a number of loss.class_weights", CLASS_WEIGHT, weight)
    if not any(weights):
        raise UserError(f"loss.class_weights is {text}: they must be numbers of at least 0, one of them more")
    return weights


def lock(config: ConfigDict) -> ConfigDict:
    """The config, closed to fields that it has not; open are the networks' own options, which it need not name."""
    config.lock()
    config.model.options.unlock()
    config.model.backbone_options.unlock()
    return config


def num_steps(config: ConfigDict, num_images: int) -> int:
    """How many steps the run takes: as set, or as many as `train.num_epochs` passes over `num_images` fill.

    Raises:
      UserError: they are more than steps are counted to.
    """
    if config.train.num_steps:
        return int(config.train.num_steps)
    epochs = config.train.num_epochs
    steps = max(1, int(epochs * epoch_length(config, num_images) / config.data.batch_size))
    if steps > MANY:
        raise UserError(f"train.num_epochs is {epochs}: over {num_images} images that is {steps} steps, take fewer")
    return steps


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
    model = config.model
    if model.name == "fcn" and "may_differ" not in written["model"] and not model.backbone.startswith("vgg"):
        # Before there was that field FCN's backbone dilated the first blocks too, where nothing else was said.
        model.backbone_options = ConfigDict({"dilate_first_block": True} | model.backbone_options.to_dict())
    return config


def _misfits(written: Mapping[str, Any], defaults: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """The fields of a config that there are not, or that `jaxseg.fields` does not allow, as `forms.broken` wants them.

    Names are left to whoever uses them: a run of a network that is not registered here can be compared.
    """
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
        elif isinstance(FIELDS[field], Name):
            if not isinstance(value, str):
                yield field, value, "a name", remedy
        elif not FIELDS[field].fits(value):
            yield field, value, FIELDS[field].due, remedy


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names))


def check_same_classes(info: DataInfo, workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Refuses data whose classes, `info`, are not those that the run in `workdir` was trained with.

    Raises:
      UserError: names both.
    """
    old = read_info(workdir, config).class_names
    if old != info.class_names:
        raise UserError(
            f"{workdir} was trained with the classes {_listed(old)}; the data has {_listed(info.class_names)} now: "
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
    new["eval.multiple"] = new["eval.multiple"] or old["eval.multiple"]  # left open, it stays
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
