"""Weights whose tensors fit and whose values would not: every option that leaves no tensor, in every layout and family.

Whether the values are equal where nothing is refused, `tests/peers/test_weight_forms_parity.py` asks the libraries.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import UserError
from jaxseg.models import FAMILIES, create_model
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import BACKBONE_LAYOUTS, MODEL_LAYOUTS, export_weights, read_weights

# Options that decide values and leave no tensor, with values to try.
NO_TENSOR = {
    "output_stride": (8, 16, 32),
    "rates": ((12, 24, 36), (6, 12, 18), (36, 24, 12)),
    "align_corners": (True, False),
    "upsampling": ("bilinear", "nearest"),
    "aux_feature": (1, 2, 3, 4),
    "depth": (3, 4, 5),
    "bins": ((1, 2, 3, 6), (6, 3, 2, 1)),
    "skip_first": (True, False),
    "at_once": (True, False),
    "backbone_options.dilate_first_block": (True, False),
    "backbone_options.epsilon": (1e-3, 1e-5),
    "backbone_options.uneven_padding": (True, False),
    "backbone_options.stem_padding": (0, 1),
    "backbone_options.first_block_features": (True, False),
    "backbone_options.expanded_features": (True, False),
}
# Those of them that decide in some networks which tensors there are, or whether the network can be made.
SHAPES_TOO = {
    *("depth", "bins", "aux_feature"),
    *("backbone_options.first_block_features", "backbone_options.expanded_features"),
}
# What tensors tell, by being there or by their shapes.
TENSORS = {
    *("num_classes", "in_channels", "features", "separable", "aspp_out", "decoder_separable", "decoder_convs"),
    *("norm_between", "aux_head", "merge", "pyramid_features", "finest", "norm", "convs", "conv_head"),
    *("norm_one_window", "kernel_sizes", "center", "stride", "learned_upsampling", "width"),
    *("backbone_options.deep_stem", "backbone_options.batch_norm", "backbone_options.width"),
    *("backbone_options.block", "backbone_options.repeats", "backbone_options.blocks"),
}
# What no value in evaluation depends on.
TRAINING = {"dropout", "aux_dropout", "dtype", "backbone_options.momentum", "backbone_options.dtype"}


def options(model) -> set[str]:
    """All that can be set of a network and its backbone."""
    own = {field.name for field in dataclasses.fields(model)} - {"backbone", "parent", "name"}
    inner = {field.name for field in dataclasses.fields(model.backbone)} - {"output_stride", "parent", "name"}
    return own | {"output_stride"} | {f"backbone_options.{name}" for name in inner}


def made(family: str, backbone: str, form: dict, **more):
    inner = {name.partition(".")[2]: value for name, value in form.items() if "." in name}
    outer = {name: value for name, value in form.items() if "." not in name}
    return create_model(family, backbone=backbone, num_classes=5, backbone_options=inner, **outer, **more)


@functools.cache
def flat_shapes(model) -> dict[tuple[str, ...], tuple[int, ...]]:
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return flatten_dict(variables)


def zeros(layout, shapes, within: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """A file's tensors; they take no memory."""

    def path(entry):
        return (entry.path[0], *within, *entry.path[1:])

    return {
        entry.name: np.broadcast_to(np.float32(0), entry.their_shape(shapes[path(entry)].shape))
        for entry in layout.entries
        if path(entry) in shapes
    }


# Library, family, backbone, whether it has an auxiliary head; of each class of backbone one.
LIKE_ANOTHER = ("vgg16", "resnet34", "resnet101")
THERE = [
    (library, family, backbone)
    for family, networks in FAMILIES.items()
    for backbone in networks
    if backbone in BACKBONES
    for library, find in MODEL_LAYOUTS.items()
    if find(create_model(family, backbone=backbone, num_classes=5))
]
WHOLE = [
    (library, family, backbone, aux_head)
    for library, family, backbone in THERE
    if backbone not in (*LIKE_ANOTHER, "resnet50" if library == "smp" else "")
    for aux_head in ((False, True) if library == "torchvision" else (False,))
]
PARTS = [
    (library, backbone)
    for backbone in BACKBONES
    for library, find in BACKBONE_LAYOUTS.items()
    if find(BACKBONES[backbone]())
]


def test_every_option_is_known_to_decide_values_or_not():
    for family, networks in FAMILIES.items():
        for backbone in networks:
            if backbone in BACKBONES:
                known = NO_TENSOR.keys() | TENSORS | TRAINING
                assert options(create_model(family, backbone=backbone, num_classes=5)) <= known, (family, backbone)


def test_the_libraries_have_what_they_are_known_to_have():
    """What has no reference can't be said to be equal to one: torchvision builds so many, and SMP dilates no VGG."""
    assert {there[1:] for there in THERE if there[0] == "torchvision"} == {
        *(("fcn", backbone) for backbone in ("resnet50", "resnet101")),
        *(("deeplabv3", backbone) for backbone in ("resnet50", "resnet101", "mobilenet_v3_large")),
    }
    assert not any("deeplab" in family for _, family, backbone in THERE if backbone.startswith("vgg"))


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@pytest.mark.parametrize("aux_head", [False, True])
def test_fcn_is_torchvisions_by_default(backbone, aux_head):
    model = create_model("fcn", backbone=backbone, num_classes=5, aux_head=aux_head)
    shapes = flat_shapes(model)
    weights = read_weights(model, zeros(MODEL_LAYOUTS["torchvision"](model), shapes), unflatten_dict(shapes))
    assert len(weights.tensors) == len(shapes)


# Not every option of `NO_TENSOR` matters in every network.
def matters(model, option: str) -> bool:
    family, backbone = type(model).__name__, model.backbone
    depth = getattr(model, "depth", 5)
    if option == "backbone_options.dilate_first_block":
        return backbone.output_stride < 2**depth
    if option == "output_stride":
        return depth > 3
    if option == "aux_feature":
        return model.aux_head
    if option == "backbone_options.first_block_features":
        # DeepLabV3 and FCN read the last feature alone, which it leaves as it is.
        return family not in ("DeepLabV3", "FCN") or model.aux_head
    return True


@pytest.mark.parametrize(("library", "family", "backbone", "aux_head"), WHOLE)
def test_weights_of_a_whole_network_of_another_form_are_refused_by_the_options_name(
    library, family, backbone, aux_head, tmp_path
):
    more = {"aux_head": True} if aux_head else {}
    own = made(family, backbone, {}, **more)
    form = dict(MODEL_LAYOUTS[library](own).form)
    own = made(family, backbone, form, **more)
    layout, shapes = MODEL_LAYOUTS[library](own), flat_shapes(own)
    tensors, nested = zeros(layout, shapes), unflatten_dict(shapes)
    assert len(read_weights(own, tensors, nested).tensors) == len(shapes)
    path = tmp_path / "out.safetensors"
    tried = 0
    for option in sorted(options(own) & NO_TENSOR.keys()):
        for value in NO_TENSOR[option]:
            before = form.get(option, _value(own, option))
            if value == before:
                continue
            try:
                other = made(family, backbone, form | {option: value}, **more)
                its_shapes = flat_shapes(other) if option in SHAPES_TOO else shapes
            except UserError:
                continue  # no such network
            if not matters(own, option) and not matters(other, option):
                continue
            tried += 1
            with pytest.raises(UserError) as caught:
                read_weights(other, tensors, unflatten_dict(its_shapes))
            alike = {key: leaf.shape for key, leaf in its_shapes.items()} == {k: s.shape for k, s in shapes.items()}
            if alike and MODEL_LAYOUTS[library](other):
                assert f"{option} is {form[option]} there and {value} here" in str(caught.value)
                assert "\n" not in str(caught.value)
                with pytest.raises(UserError, match=f"{option} is "):
                    export_weights(other, {}, path, library)
                lines = read_weights(other, tensors, nested, may_differ=_differing(form, other)).report
                assert any(line.startswith(f"{option} is ") for line in lines)
            elif not MODEL_LAYOUTS[library](other):
                with pytest.raises(UserError, match=f"{library} has no "):
                    export_weights(other, {}, path, library)
    assert tried and not path.exists()


def _value(model, option: str):
    if option == "output_stride":
        return model.backbone.output_stride
    return getattr(model.backbone, option.partition(".")[2]) if "." in option else getattr(model, option)


def _differing(form, model) -> list[str]:
    return [option for option, value in form.items() if _value(model, option) != value]


@pytest.mark.parametrize(("library", "backbone"), PARTS)
def test_a_classifiers_weights_in_a_backbone_of_another_form_are_refused_by_the_options_name(library, backbone):
    family = "fpn"
    own = made(family, backbone, {})
    if library == "timm" and backbone.startswith("resnet"):
        own = made(family, backbone, {"backbone_options.deep_stem": True})
    layout = BACKBONE_LAYOUTS[library](own.backbone)
    form, deep = dict(layout.form), {}
    if getattr(own.backbone, "deep_stem", False):
        deep = {"backbone_options.deep_stem": True}
    own = made(family, backbone, form | deep)
    shapes = flat_shapes(own)
    tensors = zeros(layout, shapes, ("backbone",))
    assert len(read_weights(own, tensors, unflatten_dict(shapes)).tensors) == len(tensors)
    # A classifier says nothing of dilation, nor of which features are taken.
    ours_to_choose = {"dilate_first_block", "first_block_features", "expanded_features"}
    for option in sorted(options(own) & NO_TENSOR.keys()):
        name = option.partition(".")[2]
        if not name or name in ours_to_choose:
            continue
        for value in NO_TENSOR[option]:
            if value != _value(own, option):
                other = made(family, backbone, form | deep | {option: value})
                with pytest.raises(UserError, match="there and ") as caught:
                    read_weights(other, tensors, unflatten_dict(shapes))
                assert f"{option} is {form[option]} there and {value} here" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["tf_mobilenetv3_large_100-427764d5.pth", "timm--resnetblur50.bt_in1k/model.safetensors"]
)
def test_a_file_that_is_by_its_name_another_network_of_the_same_tensors_is_refused(name, tmp_path):
    from safetensors.numpy import save_file

    backbone = "resnet50" if "resnet" in name else "mobilenet_v3_large"
    options = {"backbone_options": {"epsilon": 1e-5}} if "mobile" in name else {}
    model = create_model("fpn", backbone=backbone, num_classes=5, **options)
    layout = BACKBONE_LAYOUTS["torchvision" if "resnet" in name else "timm"](model.backbone)
    shapes, path = flat_shapes(model), (tmp_path / name).with_suffix(".safetensors")
    path.parent.mkdir(exist_ok=True)
    tensors = {key: np.zeros(value.shape, np.float32) for key, value in zeros(layout, shapes, ("backbone",)).items()}
    save_file(tensors, path)
    with pytest.raises(UserError, match="by its name"):
        read_weights(model, path, unflatten_dict(shapes))
    # From tensors no name tells: it is said.
    assert any("no file tells" in line for line in read_weights(model, tensors, unflatten_dict(shapes)).report)
