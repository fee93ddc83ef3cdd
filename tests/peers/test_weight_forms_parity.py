"""Every library x family x form: weights give the logits of the library's own network, or are refused. Never silence.

A form is the model's with one option changed that leaves no tensor. The same of every option, without the libraries'
networks: `tests/models/test_weight_forms.py`.
"""

import contextlib

import jax
import pytest
from parity import NUM_CLASSES, apply, arrays, outputs, pictures, relative_error

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.pretrained import MODEL_LAYOUTS, export_weights, read_weights
from jaxseg.models.pretrained.files import read_safetensors

pytestmark = [pytest.mark.peers, pytest.mark.nightly]

SHAPE = (1, 64, 96)
FORMS = {
    "output_stride": (8, 16, 32),
    "rates": ((12, 24, 36), (6, 12, 18), (36, 24, 12)),
    "align_corners": (True, False),
    "upsampling": ("bilinear", "nearest"),
    "aux_feature": (2, 3),
    "depth": (3, 4, 5),
    "bins": ((1, 2, 3, 6), (6, 3, 2, 1)),
    "skip_first": (True, False),
    "merge": ("add", "cat"),
    "backbone_options.dilate_first_block": (True, False),
    "backbone_options.epsilon": (1e-3, 1e-5),
    "backbone_options.uneven_padding": (True, False),
    "backbone_options.first_block_features": (True, False),
    "backbone_options.expanded_features": (True, False),
    "backbone_options.deep_stem": (True, False),
}
# Those that decide which tensors there are, or of which shapes.
SHAPES_TOO = {"depth", "bins", "merge", "aux_feature"} | {
    f"backbone_options.{name}" for name in ("first_block_features", "expanded_features", "deep_stem")
}
SMP = {"unet": "Unet", "fpn": "FPN", "pspnet": "PSPNet", "deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3Plus"}
RESNETS = ("resnet50", "resnet101")
CASES = [
    *(
        ("torchvision", family, b, aux)
        for family in ("fcn", "deeplabv3")
        for b in ("resnet50", "resnet101")
        for aux in (0, 1)
    ),
    *(("torchvision", "deeplabv3", "mobilenet_v3_large", aux) for aux in (0, 1)),
    *(("smp", family, b, 0) for family in SMP for b in ("vgg16", "vgg16_bn", "mobilenet_v2", "resnet18", "resnet50")),
]


def made(family: str, backbone: str, form: dict, aux_head: bool):
    inner = {name.partition(".")[2]: value for name, value in form.items() if "." in name}
    outer = {name: value for name, value in form.items() if "." not in name}
    outer |= {"aux_head": True} if aux_head else {}
    return create_model(family, backbone=backbone, num_classes=NUM_CLASSES, backbone_options=inner, **outer)


def reference(library: str, family: str, backbone: str, aux_head: bool, torchvision, smp):
    if library == "torchvision":
        build = getattr(torchvision.models.segmentation, f"{family}_{backbone}")
        return build(weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=bool(aux_head))
    return getattr(smp, SMP[family])(backbone, encoder_weights=None, classes=NUM_CLASSES)


def forms(family: str, backbone: str, aux_head: bool):
    """What `create_model` gives by default, and that with one option changed."""
    yield {}, made(family, backbone, {}, aux_head)
    for option, values in FORMS.items():
        for value in values:
            with contextlib.suppress(UserError):  # no such option, or no such network
                yield {option: value}, made(family, backbone, {option: value}, aux_head)


def shapes_of(model):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


@pytest.mark.parametrize(("library", "family", "backbone", "aux_head"), CASES)
def test_every_form_has_the_librarys_logits_or_is_refused(
    library, family, backbone, aux_head, torchvision, smp, randomise, tmp_path, capsys
):
    try:
        theirs = randomise(reference(library, family, backbone, aux_head, torchvision, smp)).eval()
    except ValueError:
        assert (library, backbone[:3]) == ("smp", "vgg")  # SMP dilates none
        assert MODEL_LAYOUTS[library](made(family, backbone, {}, aux_head)) is None
        return
    tensors, images = arrays(theirs.state_dict()), pictures(*SHAPE)
    due, found, own = outputs(theirs, images), {"equal": [], "error": []}, None
    layout = MODEL_LAYOUTS[library](made(family, backbone, {}, aux_head))
    tried = [*forms(family, backbone, aux_head), (dict(layout.form), made(family, backbone, layout.form, aux_head))]
    done, own_shapes = {}, shapes_of(made(family, backbone, layout.form, aux_head))
    for form, ours in tried:
        shapes = own_shapes
        try:
            shapes = shapes_of(ours) if form.keys() & SHAPES_TOO else own_shapes
            variables = read_weights(ours, tensors, shapes).into(shapes)
        except UserError:
            found["error"].append(form)
            if not form.keys() & SHAPES_TOO:
                with pytest.raises(UserError):
                    export_weights(ours, shapes, tmp_path / "refused.safetensors", library)
            continue
        if ours not in done:
            run = jax.jit(
                lambda v, x, ours=ours: apply(ours, v, x), compiler_options={"xla_backend_optimization_level": 0}
            )
            got = run(variables, images)
            assert got.keys() == due.keys()
            done[ours] = max(relative_error(got[key], due[key]) for key in due)
        assert done[ours] <= 1e-4, (form, done[ours])
        found["equal"].append(form)
        own = ours, variables
    # Whatever else is refused, the library's own form is not.
    assert dict(layout.form) in found["equal"]
    export_weights(*own, tmp_path / "out.safetensors", library)
    for name, tensor in read_safetensors(tmp_path / "out.safetensors").items():
        if tensor.any():  # what the network stops before is written as zeros
            assert (tensor == tensors[name]).all(), name
    counts = " | ".join(f"{len(those)} {word}" for word, those in found.items())
    with capsys.disabled():
        print(f"\n{library} | {family} | {backbone}{' aux' if aux_head else ''} | {counts}")
