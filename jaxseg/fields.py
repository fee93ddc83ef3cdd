"""What every field of a config, and every option of a network, may be: bounds, choices and forms as data.

`FIELDS` has each field of `configs/default.py` once, `OPTIONS` each option of a network or backbone by the name of its
class. `check` holds a value to what stands there. The bounds are wide: within them a value can be wrong for a task, but
beyond them it is a slip of the pen. What two fields ask of each other is in `jaxseg.config.validate`.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxseg.errors import UserError, shown
from jaxseg.lookup import nearest


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, both included unless they are `open_low`, `open_high`; never NaN.

    Fields:
      or_zero: whether 0 is taken too, where it lies below `low`: it turns something off.
      whole: whether it is an integer.
      odd: whether it is an odd one.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    or_zero: bool = False
    whole: bool = False
    odd: bool = False

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if self.odd and value % 2 == 0:
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return (above and below) or (self.or_zero and value == 0)

    @property
    def due(self) -> str:
        kind = "an odd number" if self.odd else "a whole number" if self.whole else "a number"
        bounds = f"from {self.low:.10g} to {self.high:.10g}"
        if self.open_low or self.open_high:
            low = f"more than {self.low:.10g}" if self.open_low else f"at least {self.low:.10g}"
            high = f"less than {self.high:.10g}" if self.open_high else f"at most {self.high:.10g}"
            bounds = f"of {low} and {high}"
        return f"{kind} {'of 0 or ' if self.or_zero else ''}{bounds}"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    due = "True or False"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """One of `values`, of their type."""

    values: tuple[Any, ...]

    def fits(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.values)

    @property
    def due(self) -> str:
        return f"one of {', '.join(repr(value) if value == '' else str(value) for value in self.values)}"


@dataclass(frozen=True)
class Name:
    """A name in `table`, `MODULE:TABLE`, which is imported when it is asked for; `what` it is the name of.

    Fields:
      or_none: whether '' is taken too.
    """

    what: str
    table: str
    or_none: bool = False

    def names(self) -> list[str]:
        module, _, table = self.table.partition(":")
        return [*([""] if self.or_none else []), *getattr(importlib.import_module(module), table)]

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names()

    @property
    def due(self) -> str:
        return f"the name of one of these: {', '.join(repr(name) if name == '' else name for name in self.names())}"


@dataclass(frozen=True)
class Text:
    """Text of at most `most` characters, without NUL."""

    most: int = 1000

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= self.most and "\0" not in value

    @property
    def due(self) -> str:
        return f"text of at most {self.most} characters, without NUL"


# What file systems take, in bytes: a whole path, and each name in it.
LONGEST_PATH, LONGEST_NAME = 4095, 255


@dataclass(frozen=True)
class Path:
    """The path of a file or folder that a file system can have."""

    due = f"a path of at most {LONGEST_PATH} bytes, {LONGEST_NAME} a name, without NUL"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str) or "\0" in value:
            return False
        try:
            path = os.fsencode(value)
        except UnicodeEncodeError:
            return False
        return len(path) <= LONGEST_PATH and all(len(name) <= LONGEST_NAME for name in path.split(b"/"))


@dataclass(frozen=True)
class Several:
    """`least` to `most` of `of`, as a tuple or a list.

    Fields:
      what: they are, in words.
      or_none: whether () is taken too.
      distinct: whether none may come twice.
    """

    of: Any
    least: int
    most: int
    what: str
    or_none: bool = False
    distinct: bool = False

    def fits(self, value: Any) -> bool:
        if not isinstance(value, tuple | list):
            return False
        if not value and self.or_none:
            return True
        if not self.least <= len(value) <= self.most or not all(map(self.of.fits, value)):
            return False
        return not self.distinct or len(set(value)) == len(value)

    @property
    def due(self) -> str:
        twice = ", none twice" if self.distinct else ""
        return f"{'() or ' if self.or_none else ''}{self.what}{twice}; each {self.of.due}"


@dataclass(frozen=True)
class Either:
    """One of several forms; None where `or_none`."""

    of: tuple[Any, ...]
    or_none: bool = False

    def fits(self, value: Any) -> bool:
        return (self.or_none and value is None) or any(kind.fits(value) for kind in self.of)

    @property
    def due(self) -> str:
        return " or ".join([*(kind.due for kind in self.of), *(["None"] if self.or_none else [])])


def whole(low: float, high: float, **more: Any) -> Number:
    """A whole number from `low` to `high`."""
    return Number(low, high, whole=True, **more)


MANY = 2**31 - 1  # steps that an int32 counts
_MANY_STEPS = whole(0, MANY)
_SIDE = whole(32, 16384)  # pixels
_WEIGHT = Number(1e-6, 100, or_zero=True)  # of a loss
_SHARE = Number(0, 1, open_high=True)
_RATE = Number(1e-12, 1)
_SIZE = Several(_SIDE, 2, 2, "(height, width) in pixels")

# Every field of configs/default.py but those of the open groups: `model.options` and `model.backbone_options`, which
# are in OPTIONS, and `published`, which nothing is computed from.
FIELDS: dict[str, Any] = {
    "data.name": Name("data set", "jaxseg.data:DATASETS"),
    "data.version": Text(),
    "data.dir": Path(),
    "data.orientation": Name("way for images to lie", "jaxseg.data.headers:ORIENTATIONS"),
    "data.batch_size": whole(1, 2**16),
    "data.eval_batch_size": whole(1, 2**16),
    "data.resize": Several(_SIDE, 2, 2, "(height, width) in pixels", or_none=True),
    "data.variants": Several(Name("variant", "jaxseg.data.transforms:VARIANTS"), 1, 64, "variants", or_none=True),
    "data.crop_size": Either((_SIDE, _SIZE)),
    "data.scale": Several(Number(0.01, 10), 2, 2, "(lowest, highest)"),
    "data.center_crop": Flag(),
    "data.flip": Flag(),
    "data.vertical_flip": Flag(),
    "data.rotate90": Flag(),
    "data.grid_distortion": _SHARE,
    "data.elastic": Number(0, 1000),
    "data.jitter": Number(0, 2),
    "data.stain": _SHARE,
    "data.mean": Several(Number(0, 1), 3, 3, "three numbers, of red, green and blue over 255", or_none=True),
    "data.std": Several(Number(3e-3, 10), 3, 3, "three numbers, of red, green and blue over 255", or_none=True),
    "data.on_device": Flag(),
    "data.workers": whole(0, 256),
    "model.name": Name("model", "jaxseg.models:FAMILIES"),
    "model.backbone": Text(),
    "model.output_stride": Choice((0, 8, 16, 32)),
    "model.weights": Path(),
    "model.may_differ": Text(),
    "model.dtype": Name("dtype", "jaxseg.models:DTYPES"),
    "loss.cross_entropy": _WEIGHT,
    "loss.binary_cross_entropy": _WEIGHT,
    "loss.dice": _WEIGHT,
    "loss.jaccard": _WEIGHT,
    "loss.focal": _WEIGHT,
    "loss.lovasz": _WEIGHT,
    "loss.tversky": _WEIGHT,
    "loss.ohem": _WEIGHT,
    "loss.auxiliary": _WEIGHT,
    "loss.label_smoothing": _SHARE,
    "loss.class_weights": Text(10_000),
    "refine.base": Path(),
    "refine.lambda_cross_entropy": Number(1e-6, 1e4),
    "refine.width": whole(1, 1024),
    "refine.discriminator_width": whole(1, 1024),
    "refine.discriminator_learning_rate": _RATE,
    "optim.name": Name("optimizer", "jaxseg.optim:OPTIMIZERS"),
    "optim.learning_rate": _RATE,
    "optim.backbone_lr_scale": Number(0, 10),
    "optim.freeze_backbone": Flag(),
    "optim.schedule": Name("schedule", "jaxseg.optim:SCHEDULES"),
    "optim.poly_power": Number(0, 10),
    "optim.plateau_factor": Number(1e-3, 1, open_high=True),
    "optim.plateau_patience": whole(1, MANY),
    "optim.plateau_floor": Number(0, 1),
    "optim.warmup_steps": _MANY_STEPS,
    "optim.weight_decay": Number(0, 1),
    "optim.momentum": _SHARE,
    "optim.clip_norm": Number(1e-6, 1e6, or_zero=True),
    "train.num_steps": _MANY_STEPS,
    "train.num_epochs": Number(0, 1e6),
    "train.eval_every": _MANY_STEPS,
    "train.eval_epochs": Number(0, 1e6),
    "train.checkpoint_every": whole(1, MANY),
    "train.log_every": whole(1, MANY),
    "train.best": Text(),
    "train.patience": _MANY_STEPS,
    "train.accumulate": whole(1, 2**16),
    "train.remat": Flag(),
    "train.fsdp": Flag(),
    "train.ema_decay": _SHARE,
    "train.seed": whole(0, 2**32 - 1),
    "eval.split": Text(),
    "eval.protocol": Name("protocol", "jaxseg.protocols:WORDS"),
    "eval.size": Several(_SIDE, 1, 2, "(pixels,) or (height, width)", or_none=True),
    "eval.stride": whole(0, 16384),
    "eval.scales": Several(Number(1 / 16, 8), 1, 32, "factors of the image, such as (0.5, 1.0)", distinct=True),
    "eval.flip": Flag(),
    "eval.multiple": whole(0, 2**20),
    "eval.boundary_tolerance": Number(0, 1000),
    "eval.published": Name("project's definition of scores", "jaxseg.published:DEFINITIONS", or_none=True),
}

_CHANNELS = whole(1, 8192)
_RATES = Several(whole(1, 255), 1, 16, "dilations, such as (12, 24, 36)")
_DEPTH = Choice((3, 4, 5))
_EPSILON = Number(1e-8, 1)
_BACKBONE = {"dilate_first_block": Flag()}
_BACKBONE_NORM = {"epsilon": _EPSILON, "momentum": _SHARE}

# Class of a network or backbone: option: what it may be. What has a field that is not here can't be given it by name.
OPTIONS: dict[str, dict[str, Any]] = {
    "DeepLabV3": {
        "depth": _DEPTH,
        "rates": _RATES,
        "separable": Flag(),
        "features": _CHANNELS,
        "dropout": _SHARE,
        "aspp_out": Flag(),
        "align_corners": Flag(),
        "aux_head": Flag(),
        "aux_feature": whole(0, 4),
        "aux_dropout": _SHARE,
    },
    "DeepLabV3Plus": {
        "rates": _RATES,
        "separable": Flag(),
        "features": _CHANNELS,
        "dropout": _SHARE,
        "aspp_out": Flag(),
        "decoder_separable": Flag(),
        "decoder_convs": whole(0, 16),
        "norm_between": Flag(),
        "skip_first": Flag(),
        "align_corners": Flag(),
    },
    "FCN": {
        "dropout": _SHARE,
        "align_corners": Flag(),
        "aux_head": Flag(),
        "aux_feature": whole(0, 4),
    },
    "FCNVGG": {
        "stride": Choice((8, 16, 32)),
        "at_once": Flag(),
        "learned_upsampling": Flag(),
        "width": _CHANNELS,
        "dropout": _SHARE,
    },
    "FPN": {
        "merge": Choice(("add", "cat")),
        "pyramid_features": _CHANNELS,
        "features": _CHANNELS,
        "finest": Choice((1, 2)),
        "norm": Choice(("group", "batch")),
        "convs": whole(0, 16),
        "upsampling": Choice(("bilinear", "nearest")),
        "conv_head": Flag(),
        "align_corners": Flag(),
        "dropout": _SHARE,
    },
    "PSPNet": {
        "depth": _DEPTH,
        "bins": Several(whole(1, 64), 1, 16, "windows along a side, such as (1, 2, 3, 6)", distinct=True),
        "norm_one_window": Flag(),
        "features": _CHANNELS,
        "kernel_sizes": Several(whole(1, 15, odd=True), 2, 2, "two kernel sizes"),
        "dropout": _SHARE,
        "aux_head": Flag(),
    },
    "SegNet": {},
    "SegNetBasic": {"features": _CHANNELS, "kernel_size": whole(1, 31, odd=True), "depth": whole(1, 6)},
    "SegNetConstant": {"width": _CHANNELS},
    "UNet": {
        "features": Several(_CHANNELS, 5, 5, "channels of five blocks, coarsest first"),
        "center": Either((Flag(),), or_none=True),
    },
    "PlainUNet": {
        "width": _CHANNELS,
        "depth": whole(1, 6),
        "convs": whole(1, 4),
        "batch_norm": Flag(),
        "conv_bias": Flag(),
        "upsampling": Choice(("transposed", "nearest", "bilinear")),
        "up_kernel_size": whole(1, 8),
        "dropout": _SHARE,
    },
    "UNetPix2Pix": {"features": Several(_CHANNELS, 4, 4, "channels of four blocks, coarsest first")},
    "VGG": {"batch_norm": Flag(), "width": Either((_CHANNELS,), or_none=True), **_BACKBONE},
    "MobileNetV1": {"uneven_padding": Flag(), **_BACKBONE_NORM, **_BACKBONE},
    "MobileNetV2": {"uneven_padding": Flag(), "expanded_features": Flag(), **_BACKBONE_NORM, **_BACKBONE},
    "MobileNetV3": {"first_block_features": Flag(), **_BACKBONE_NORM, **_BACKBONE},
    "ResNet": {"deep_stem": Flag(), "repeats": Several(whole(1, 64), 4, 4, "blocks of four stages"), **_BACKBONE},
    "Xception": {"stem_padding": whole(0, 1), **_BACKBONE_NORM, **_BACKBONE},
    "Xception65": {"uneven_padding": Flag(), **_BACKBONE_NORM, **_BACKBONE},
}

# A number of `loss.class_weights`.
CLASS_WEIGHT = Number(1e-6, 1e6, or_zero=True)

# Arguments of `create_model` that are no option of a network.
NUM_CLASSES, IN_CHANNELS = whole(1, 2**16), whole(1, 1024)


def shown_value(value: Any, most: int = 80) -> str:
    """A value as it was given, cut to `most` characters and escaped; text in quotes."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than some thousand digits
        text = "an integer of thousands of digits"
    return shown(text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)")


def check(name: str, kind: Any, value: Any) -> None:
    """Raises a `UserError`, with what is due, where `value` is not what `kind` asks; `name` is the field's."""
    if kind.fits(value):
        return
    if isinstance(kind, Name) and isinstance(value, str):
        raise UserError(f"unknown {kind.what} ({name}) '{shown(value[:80])}': {nearest(value, kind.names())}")
    if isinstance(kind, Several) and isinstance(kind.of, Name) and isinstance(value, tuple | list):
        for item in value:
            check(name, kind.of, item)
    raise UserError(f"{name} is {shown_value(value)}: it must be {kind.due}")


def check_table(owner: str, cls: type, options: Mapping[str, Any], known: list[str], where: str = "") -> None:
    """Holds `options` of a network or backbone, called `owner` by users, to the table of its class.

    Args:
      known: its fields. Of a class that is not in the table they are the options, whatever their values.
      where: the config's group that they stand in.

    Raises:
      UserError: there is no such option, with the nearest ones, or it can't have that value.
    """
    table = OPTIONS.get(cls.__name__)
    for option, value in options.items():
        if option not in known or (table is not None and option not in table):
            names = known if table is None else [name for name in known if name in table]
            what = nearest(option, names) if names else "it has none"
            group = f" ({where})" if where else ""
            raise UserError(f"{owner} has no option '{shown(str(option)[:80])}'{group}: {what}")
        if table is not None:
            check(f"{where}.{option}" if where else f"{option} of {owner}", table[option], value)
