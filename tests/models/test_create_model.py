"""`create_model` and the configs that call it."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxseg.config import build_model
from jaxseg.data import DATASETS, data_info
from jaxseg.errors import UserError
from jaxseg.models import create_model, list_models
from jaxseg.models.backbones import BACKBONES
from jaxseg.state import abstract_variables

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py") if path.stem != "__init__")
ARGUMENTS = {
    "deeplab": ["", "mobilenet_v2", *(f"{b},shapes" for b in BACKBONES), *DATASETS],
    "deeplabv3": ["", "mobilenet_v2,camvid"],
    "fcn": ["", "camvid", *(f"{b},shapes" for b in BACKBONES)],
    "fpn": ["", "mobilenet_v2,camvid"],
    "segnet": ["", "voc", "basic,camvid", "constant,shapes"],
    "unet": ["", "mobilenet_v2,camvid", "plain,camvid"],
    "unet_pix2pix": ["", "resnet18,camvid"],
    "pspnet": ["", *(f"{b},camvid" for b in BACKBONES)],
}


def deeplab(**changes):
    return create_model(**{"name": "deeplabv3plus", "backbone": "resnet18", "num_classes": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "deeplab"}, "unknown model 'deeplab'.*deeplabv3plus"),
        ({"name": "zzz"}, "unknown model 'zzz': there are .*deeplabv3plus"),
        ({"backbone": "resnet_50"}, "unknown backbone of deeplabv3plus 'resnet_50'.*resnet50"),
        ({"dtype": "bfloat"}, "unknown dtype.* 'bfloat'.*bfloat16"),
        ({"output_stride": 4}, "output_stride is 4.*8, 16, 32"),
        ({"num_classes": 0}, "num_classes is 0.* 1 "),
        ({"seperable": True}, "deeplabv3plus has no option 'seperable'.*did you mean separable"),
        ({"parent": None}, "no option 'parent'"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(changes, words):
    with pytest.raises(UserError, match=words):
        deeplab(**changes)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (
            "unet",
            {"backbone": "plain", "output_stride": 8},
            "unet on plain has an encoder of its own",
        ),
        ("unet", {"backbone": "plain", "depth": 7}, "^depth of unet is 7"),
        ("unet", {"backbone": "resnet18", "features": (64, 32)}, r"^features of unet is \(64, 32\): .*"),
        (
            "unet_pix2pix",
            {"backbone": "resnet18", "features": (64, 32)},
            r"^features of unet_pix2pix is \(64, 32\):",
        ),
        ("fpn", {"backbone": "resnet18", "features": 100}, "features is 100: it must be a multiple of 32"),
        ("fcn", {"backbone": "resnet18", "aux_head": True, "aux_feature": 5}, "aux_feature of fcn is 5:"),
        ("segnet", {"backbone": "basic", "kernel_size": 4}, "kernel_size of segnet is 4: "),
    ],
)
def test_options_that_no_network_has_are_refused(name, fields, words):
    with pytest.raises(UserError, match=words):
        abstract_variables(create_model(name, num_classes=2, **fields))


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("vgg16", {"batch_norm": True}),
        ("resnet18", {"repeats": (1, 1, 1, 1)}),
    ],
)
def test_what_tells_backbones_of_a_kind_apart_is_an_option_too(backbone, options):
    model = create_model("unet", backbone=backbone, num_classes=2, backbone_options=options)
    assert all(getattr(model.backbone, field) == value for field, value in options.items())


def test_every_family_with_every_backbone_that_it_lists_can_be_made():
    for name, backbones in list_models().items():
        assert backbones
        for backbone in backbones:
            assert isinstance(create_model(name, backbone=backbone, num_classes=2), nn.Module)


def test_the_fields_arrive():
    model = deeplab(
        output_stride=8,
        dtype="bfloat16",
        backbone_options={"dilate_first_block": False},
        rates=(6, 12, 18),
        dropout=0.1,
    )
    assert (model.num_classes, model.rates, model.dropout, model.dtype) == (2, (6, 12, 18), 0.1, jnp.bfloat16)
    backbone = model.backbone
    assert (backbone.output_stride, backbone.dilate_first_block, backbone.dtype) == (8, False, jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in CONFIGS for argument in ARGUMENTS.get(name, [None])]
)
def test_every_config_builds_its_network(name, argument):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config() if argument is None else get_config(argument)
    # A folder's classes are its own affair.
    num_classes = 2 if config.data.name == "folder" else data_info(config.data.name).num_classes
    model = build_model(config, num_classes)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)
    assert logits.shape == (1, 64, 64, num_classes)
