"""Weights of other libraries: all of a right file is read, what may differ is told, a wrong file is refused by name."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from jaxseg.errors import UserError
from jaxseg.models import FAMILIES, create_model, pretrained
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import (
    BACKBONE_LAYOUTS,
    MODEL_LAYOUTS,
    export_weights,
    load_pretrained,
    normalisation,
    read_weights,
    smp,
    torchvision,
)
from jaxseg.models.pretrained.entries import AXES, batch_norm, conv
from jaxseg.models.pretrained.files import read_safetensors

# ------------------------------------------------------------------------------------------- the tables, every one


@functools.cache
def shapes_of(family: str, backbone: str, num_classes: int = 5, in_channels: int = 3) -> dict[tuple[str, ...], tuple]:
    """The shapes of a network's variables, by path; nothing is computed."""
    model = create_model(family, backbone=backbone, num_classes=num_classes, in_channels=in_channels)
    images = jax.ShapeDtypeStruct((1, 64, 64, in_channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}


def check_table(entries, shapes: dict, wider: dict, classes: tuple[int, int] | None) -> None:
    """Names and paths once; roles where the shape hangs on channels (3 or 4, `wider`) or classes, nowhere else."""
    paths, names = [entry.path for entry in entries], [entry.name for entry in entries]
    assert len(names) == len(set(names)) and len(paths) == len(set(paths))
    assert not shapes.keys() - set(paths)
    for entry in entries:
        assert entry.role in ("", "stem", "head") and len(shapes[entry.path]) == len(AXES[entry.kind])
        changes = {(a, b) for a, b in zip(shapes[entry.path], wider[entry.path], strict=True) if a != b}
        assert changes == {"stem": {(3, 4)}, "head": {classes}, "": set()}[entry.role], entry
    assert [shapes[entry.path][2] for entry in entries if entry.role == "stem"] == [3]


def layouts_of(model) -> dict:
    """The libraries that have a network, and their names for its tensors."""
    return {library: layout for library, find in MODEL_LAYOUTS.items() if (layout := find(model))}


# Every family on every backbone: the libraries that have the pair.
PAIRS = {
    (family, backbone): libraries
    for family, networks in FAMILIES.items()
    for backbone in networks
    if (libraries := layouts_of(create_model(family, backbone=backbone, num_classes=5)))
}


def in_its_form(family: str, backbone: str, library: str):
    """The network with the options of a library's own, where they leave no tensor."""
    model = create_model(family, backbone=backbone, num_classes=5)
    form = MODEL_LAYOUTS[library](model).form
    inner = {name.partition(".")[2]: value for name, value in form.items() if "." in name}
    outer = {name: value for name, value in form.items() if "." not in name}
    return create_model(family, backbone=backbone, num_classes=5, backbone_options=inner, **outer)


@pytest.mark.parametrize(("family", "backbone"), PAIRS)
def test_a_table_names_every_tensor_of_its_network_once(family, backbone):
    shapes, wider = shapes_of(family, backbone), shapes_of(family, backbone, 7, 4)
    for layout in PAIRS[family, backbone].values():
        entries = [entry for entry in layout.entries if entry.path in shapes]
        check_table(entries, shapes, wider, (5, 7))
        assert any(entry.role == "head" for entry in entries)
        # Layers that a network does without are the backbone's.
        assert all(entry.path[1] == "backbone" for entry in layout.entries if entry.path not in shapes)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_table_names_every_tensor_of_its_backbone_once(backbone):
    module = BACKBONES[backbone]()
    shapes, wider = (
        {
            path: leaf.shape
            for path, leaf in flatten_dict(
                jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
            ).items()
        }
        for images in (jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32) for channels in (3, 4))
    )
    layouts = [layout for find in BACKBONE_LAYOUTS.values() if (layout := find(module))]
    assert layouts, "no library's weights are known for it"
    for layout in layouts:
        check_table(layout.entries, shapes, wider, None)
        assert len(layout.mean) == len(layout.std) == 3
        assert {name.removeprefix("backbone_options.") for name in layout.form} <= set(module.__dataclass_fields__)


# ------------------------------------------------------------------- a network so small that nothing takes any time


class SmallBackbone(nn.Module):
    """Two convolutions, the second of which not every network needs."""

    output_stride: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images, *, train, depth=2):
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(images)
        x = nn.BatchNorm(not train, name="bn")(x)
        return (x, nn.Conv(4, (1, 1), name="deep")(x)) if depth == 2 else (x,)


class Small(nn.Module):
    """The backbone, a decoder, a classifier and, where asked, an auxiliary one."""

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    aux_head: bool = False
    depth: int = 2

    @nn.compact
    def __call__(self, images, *, train):
        *_, x = self.backbone(images, train=train, depth=self.depth)
        if self.aux_head:
            nn.Conv(self.num_classes, (1, 1), name="auxiliary")(x)
        x = nn.relu(nn.Conv(6, (1, 1), name="decoder")(x))
        return nn.Conv(self.num_classes, (1, 1), name="classifier")(x)


def small_backbone(backbone):
    yield from conv(("stem",), "conv1", role="stem")
    yield from batch_norm(("bn",), "bn1")
    yield from conv(("deep",), "conv2", bias=True)


def small_network(model):
    yield from smp.within(("backbone",), "encoder.", small_backbone(model.backbone))
    yield from conv(("decoder",), "decoder", bias=True)
    yield from conv(("classifier",), "head", bias=True, role="head")
    if model.aux_head:
        yield from conv(("auxiliary",), "aux_classifier", bias=True, role="head")


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """Makes the small network one of torchvision's, and one of the hub's."""
    monkeypatch.setitem(torchvision.BACKBONES, SmallBackbone, small_backbone)
    monkeypatch.setitem(torchvision.MODELS, Small, small_network)


def small(num_classes: int = 5, in_channels: int = 3, **fields) -> Small:
    return Small(SmallBackbone(), num_classes, in_channels, **fields)


def variables_of(model, seed: int = 0):
    """Random variables, every one of them, so that none is what initialising gives."""
    images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), variables)


def their_tensors(model, variables=None, layout="torchvision") -> dict[str, np.ndarray]:
    """`variables`, or random ones, under a library's names and with its axes."""
    found, flat = MODEL_LAYOUTS[layout](model), flatten_dict(variables_of(model) if variables is None else variables)
    return {entry.name: entry.to_theirs(flat[entry.path]) for entry in found.entries if entry.path in flat}


def classifier_file(model) -> dict[str, np.ndarray]:
    """What torchvision's classifier has: the backbone, and what no segmentation network has a use for."""
    whole = their_tensors(model)
    backbone = {n.removeprefix("encoder."): t for n, t in whole.items() if n.startswith("encoder.")}
    beside = {"fc.weight": np.zeros((10, 4), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    return backbone | beside


def load(model, source, **options):
    """The variables and the lines that were said."""
    lines = []
    return flatten_dict(load_pretrained(model, source, log=lines.append, **options)), lines


def read(model, source):
    """The tensors of the source, by path, and the lines; nothing is initialised."""
    weights = read_weights(model, source)
    return dict(weights.tensors), list(weights.report)


@functools.cache
def fresh(model, seed: int = 0):
    """What initialising gives."""
    images = jnp.zeros((1, 64, 64, model.in_channels))
    return flatten_dict(jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed)))


def assert_equal(left: dict, right: dict, but: tuple[str, ...] = ()) -> None:
    """The same arrays at the same paths, those of modules `but` aside."""
    assert left.keys() == right.keys()
    for path in left:
        if not set(path) & set(but):
            np.testing.assert_array_equal(left[path], right[path], err_msg="/".join(path))


# ------------------------------------------------------------------------------------------------- all of a right file


def test_a_whole_model_arrives_and_comes_back(tmp_path):
    model = small()
    variables = variables_of(model)
    save_file(their_tensors(model, variables), tmp_path / "theirs.safetensors")
    loaded, lines = load(model, tmp_path / "theirs.safetensors")
    assert_equal(loaded, flatten_dict(variables))
    assert lines[0] == f"11 tensors of Small from {tmp_path / 'theirs.safetensors'}, under torchvision's names"
    assert lines[1:] == [
        "they want images less mean (0.485, 0.456, 0.406), over std (0.229, 0.224, 0.225), RGB in [0, 1]"
    ]
    export_weights(model, variables, tmp_path / "ours.safetensors", "torchvision")
    theirs, ours = (load_file(tmp_path / f"{name}.safetensors") for name in ("theirs", "ours"))
    assert_equal({(name,): t for name, t in theirs.items()}, {(name,): t for name, t in ours.items()})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_convolutions_are_turned_to_our_axes():
    model = small()
    tensors = their_tensors(model)
    loaded, _ = load(model, tensors)
    theirs, ours = tensors["encoder.conv1.weight"], loaded["params", "backbone", "stem", "kernel"]
    # [out, in, i, j] of theirs is [i, j, in, out] of ours.
    assert ours[0, 2, 1, 3] == theirs[3, 1, 0, 2]
    np.testing.assert_array_equal(ours, np.einsum("oihw->hwio", theirs))
    assert all(leaf.dtype == np.float32 for leaf in loaded.values())


@pytest.mark.parametrize(
    ("family", "layout"), sorted({(family, library) for (family, _), found in PAIRS.items() for library in found})
)
def test_real_networks_go_out_and_come_back_equal(family, layout, tmp_path):
    backbone = next(backbone for (name, backbone), found in PAIRS.items() if name == family and layout in found)
    model = in_its_form(family, backbone, layout)
    variables = variables_of(model)
    export_weights(model, variables, tmp_path / "out.safetensors", layout)
    loaded, lines = load(model, tmp_path / "out.safetensors")
    assert_equal(loaded, flatten_dict(variables))
    assert f"under {layout}'s names" in lines[0]


def test_a_classifiers_file_gives_the_backbone_and_leaves_the_rest_as_initialised():
    model = small()
    tensors = classifier_file(model)
    loaded, lines = load(model, tensors)
    assert_equal(loaded, fresh(model) | {path: loaded[path] for path in loaded if path[1] == "backbone"})
    due = read_weights(model, tensors).tensors
    assert {path[1] for path in due} == {"backbone"} and len(due) == 7
    np.testing.assert_array_equal(loaded["batch_stats", "backbone", "bn", "var"], tensors["bn1.running_var"])
    assert lines[0].startswith(
        "7 tensors of SmallBackbone from the tensors given, under torchvision's names, 2 without"
    )
    assert lines[1] == "initialised anew, for a classifier has none: classifier, decoder"


def test_the_seed_is_that_of_what_is_initialised():
    model = small()
    tensors = classifier_file(model)
    (first, _), (other, _) = (load(model, tensors, seed=seed) for seed in (3, 4))
    decoder = ("params", "decoder", "kernel")
    assert np.abs(first[decoder] - other[decoder]).max() > 1e-3
    np.testing.assert_array_equal(first[decoder], fresh(model, 3)[decoder])


def test_a_complete_source_initialises_nothing(monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    model = small()
    loaded, _ = load(model, their_tensors(model))
    assert all(isinstance(leaf, np.ndarray) for leaf in loaded.values())


@pytest.mark.parametrize("prefix", ["module.", "module.model.", "net."])
@pytest.mark.parametrize("make", [their_tensors, classifier_file])
def test_a_wrappers_prefix_is_taken_away_and_said(prefix, make):
    model = small()
    tensors = make(model)
    plain, _ = read(model, tensors)
    wrapped, lines = read(model, {prefix + name: tensor for name, tensor in tensors.items()})
    assert_equal(wrapped, plain)
    assert f"all names begin with {prefix}, which is taken away" in lines


def test_a_prefix_that_not_all_names_have_is_none():
    tensors = {f"module.{name}": tensor for name, tensor in classifier_file(small()).items()}
    tensors["fc.weight"] = tensors.pop("module.fc.weight")
    with pytest.raises(UserError, match=r"missing (encoder\.)?conv1\.weight"):
        read(small(), tensors)


def test_half_precision_in_the_file_becomes_float32(tmp_path):
    model = small()
    tensors = {name: tensor.astype(np.float16) for name, tensor in their_tensors(model).items()}
    save_file(tensors, tmp_path / "half.safetensors")
    loaded, _ = load(model, tmp_path / "half.safetensors")
    kernel = loaded["params", "backbone", "stem", "kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, np.einsum("oihw->hwio", tensors["encoder.conv1.weight"]))


def test_a_network_without_batch_statistics_keeps_an_empty_collection():
    weights = pretrained.Weights({("params", "a", "kernel"): np.ones(2, np.float32)}, (), (), ())
    variables = weights.into({"params": {"a": {"kernel": np.zeros(2)}, "b": {"bias": np.zeros(1)}}, "batch_stats": {}})
    assert variables["batch_stats"] == {}
    assert variables["params"]["b"]["bias"] == 0
    np.testing.assert_array_equal(variables["params"]["a"]["kernel"], [1, 1])


def test_the_real_mobilenet_loads(shared):
    path = shared / "weights" / "mobilenet_v2_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    weights = read_weights(create_model("deeplabv3plus", backbone="mobilenet_v2", num_classes=3), path)
    assert weights.report[0].startswith("260 tensors of mobilenet_v2")
    assert "54 without use" in weights.report[0]  # 52 step counters, the classifier's weight and bias
    theirs = load_file(path)
    np.testing.assert_array_equal(
        weights.tensors["params", "backbone", "block_16", "project", "conv", "kernel"][0, 0],
        theirs["features.17.conv.2.weight"][:, :, 0, 0].T,
    )
    assert all(np.isfinite(tensor).all() for tensor in weights.tensors.values())


# ---------------------------------------------------------------------------------------------------- what may differ


def test_another_number_of_classes_keeps_all_but_the_last_layer_and_says_so():
    source = small(21)
    variables = variables_of(source)
    loaded, lines = load(small(11), their_tensors(source, variables))
    assert_equal(
        {path: leaf for path, leaf in loaded.items() if "classifier" not in path},
        {path: leaf for path, leaf in flatten_dict(variables).items() if "classifier" not in path},
    )
    due = fresh(small(11))
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(loaded["params", "classifier", name], due["params", "classifier", name])
    assert "the classifier has 21 classes in the file and 11 here: initialised anew" in lines
    assert lines[0].startswith("9 tensors of Small")


def test_auxiliary_classifiers_are_renewed_with_the_main_one():
    source = small(21, aux_head=True)
    loaded, lines = load(small(11, aux_head=True), their_tensors(source))
    assert loaded["params", "auxiliary", "kernel"].shape[-1] == 11
    assert "the classifier and the auxiliary have 21 classes in the file and 11 here: initialised anew" in lines


def test_a_real_models_classes(tmp_path):
    source, model = (create_model("deeplabv3plus", backbone="resnet18", num_classes=n) for n in (21, 11))
    variables = variables_of(source)
    export_weights(source, variables, tmp_path / "voc.safetensors", "smp")
    weights = read_weights(model, tmp_path / "voc.safetensors")
    missing = flatten_dict(variables).keys() - weights.tensors.keys()
    assert missing == {("params", "classifier", "kernel"), ("params", "classifier", "bias")}
    assert "the classifier has 21 classes in the file and 11 here: initialised anew" in weights.report


@pytest.mark.parametrize("wrong", ["head.bias", "head.weight"])
def test_a_last_layer_that_disagrees_with_itself_is_refused(wrong):
    tensors = their_tensors(small(11)) | {wrong: their_tensors(small(21))[wrong]}
    with pytest.raises(UserError, match=rf"{wrong} has 21 classes, others of its layer not"):
        load(small(11), tensors)


def test_a_last_layer_of_another_kernel_is_refused():
    tensors = their_tensors(small(21)) | {"head.weight": np.zeros((21, 6, 3, 3), np.float32)}
    with pytest.raises(UserError, match=r"head\.weight is \(21, 6, 3, 3\), \(11, 6, 1, 1\) is due"):
        load(small(11), tensors)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("make", [their_tensors, classifier_file])
def test_another_number_of_channels_adapts_the_first_kernel_and_says_so(channels, make):
    tensors = make(small())
    loaded, lines = read(small(in_channels=channels), tensors)
    name = "encoder.conv1.weight" if make is their_tensors else "conv1.weight"
    rgb, kernel = np.einsum("oihw->hwio", tensors[name]), loaded["params", "backbone", "stem", "kernel"]
    assert kernel.shape == (3, 3, channels, 4) and kernel.dtype == np.float32
    if channels == 1:
        np.testing.assert_allclose(kernel[:, :, 0], rgb[:, :, 0] + rgb[:, :, 1] + rgb[:, :, 2], rtol=1e-6)
    else:
        for i in range(channels):
            np.testing.assert_allclose(kernel[:, :, i], rgb[:, :, i % 3] * 3 / channels, rtol=1e-6)
    assert any(line.startswith(f"the first kernel has 3 channels in the file and {channels} here: ") for line in lines)


def test_a_network_of_other_channels_comes_back_as_it_is(tmp_path):
    model = small(in_channels=4)
    variables = variables_of(model)
    export_weights(model, variables, tmp_path / "out.safetensors", "torchvision")
    assert load_file(tmp_path / "out.safetensors")["encoder.conv1.weight"].shape == (4, 4, 3, 3)
    loaded, lines = load(model, tmp_path / "out.safetensors")
    assert_equal(loaded, flatten_dict(variables))
    assert not any("first kernel" in line for line in lines)


def test_the_channels_of_other_than_rgb_files_are_no_guess():
    with pytest.raises(UserError, match=r"conv1\.weight is \(4, 4, 3, 3\), \(4, 3, 3, 3\) is due"):
        load(small(), their_tensors(small(in_channels=4)))


@pytest.fixture
def bgr(monkeypatch):
    """The small network as one that saw BGR, of Caffe's normalisation."""
    of_models, of_backbones = MODEL_LAYOUTS["torchvision"], BACKBONE_LAYOUTS["torchvision"]
    saw = {"bgr": True, "mean": (0.48, 0.46, 0.41), "std": (1 / 255,) * 3}
    monkeypatch.setitem(MODEL_LAYOUTS, "torchvision", lambda model: of_models(model)._replace(**saw))
    monkeypatch.setitem(BACKBONE_LAYOUTS, "torchvision", lambda module: of_backbones(module)._replace(**saw))


def test_a_network_that_saw_bgr_takes_rgb(bgr):
    model, images = small(), np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    variables = variables_of(model)
    loaded = load_pretrained(model, their_tensors(model, variables), log=lambda line: None)
    due = model.apply(variables, images[..., ::-1], train=False)
    np.testing.assert_allclose(model.apply(loaded, images, train=False), due, rtol=1e-4)
    _, lines = load(model, their_tensors(model))
    assert "the network saw BGR: its first kernel is turned to take RGB" in lines
    assert lines[-1].startswith("they want images less mean (0.48, 0.46, 0.41), over std (0.003922, ")


def test_channels_are_turned_before_they_are_spread(bgr):
    tensors = classifier_file(small())
    loaded, _ = read(small(in_channels=4), tensors)
    theirs = np.einsum("oihw->hwio", tensors["conv1.weight"])
    np.testing.assert_allclose(
        loaded["params", "backbone", "stem", "kernel"][:, :, 3], theirs[:, :, 2] * 0.75, rtol=1e-6
    )


def test_keras_vgg_is_turned_and_has_caffes_normalisation():
    model = create_model("unet", backbone="vgg16", num_classes=5)
    layout, shapes = BACKBONE_LAYOUTS["keras"](model.backbone), shapes_of("unet", "vgg16")
    rng = np.random.default_rng(0)
    tensors = {
        entry.name: rng.normal(size=shapes[(entry.path[0], "backbone", *entry.path[1:])]).astype(np.float32)
        for entry in layout.entries
    }
    loaded, lines = read(model, tensors)
    theirs = tensors["block1_conv1/kernel"]
    np.testing.assert_array_equal(loaded["params", "backbone", "conv1_1", "kernel"], theirs[:, :, ::-1])
    assert "the network saw BGR: its first kernel is turned to take RGB" in lines
    mean, std = normalisation(model, tensors)
    # Their mean is of BGR in [0, 255], and nothing is scaled.
    np.testing.assert_allclose(np.multiply(mean, 255), [123.68, 116.779, 103.939])
    np.testing.assert_allclose(np.multiply(std, 255), 1)


def test_an_auxiliary_head_that_only_the_file_has_is_left_out():
    source = small(aux_head=True)
    loaded, lines = load(small(), their_tensors(source))
    assert not any("auxiliary" in path for path in loaded)
    assert "the auxiliary head's 2 tensors are left out: the model here has none" in lines


def test_an_auxiliary_head_that_only_the_model_has_is_initialised():
    model = small(aux_head=True)
    loaded, lines = load(model, their_tensors(small()))
    due = fresh(model)["params", "auxiliary", "kernel"]
    np.testing.assert_array_equal(loaded["params", "auxiliary", "kernel"], due)
    assert "the auxiliary head's 2 tensors are not in the file: initialised anew" in lines


def test_half_an_auxiliary_head_is_refused():
    tensors = their_tensors(small(aux_head=True))
    del tensors["aux_classifier.bias"]
    with pytest.raises(UserError, match=r"missing aux_classifier\.bias \(5,\)"):
        load(small(aux_head=True), tensors)


def test_an_auxiliary_head_that_the_library_has_not_is_initialised():
    source, model = (
        create_model("deeplabv3", backbone="resnet18", num_classes=5, aux_head=aux) for aux in (False, True)
    )
    weights = read_weights(model, their_tensors(source, layout="smp"))
    assert "smp has no auxiliary head here: initialised anew" in weights.report
    assert not any("auxiliary" in path for path in weights.tensors)


def test_layers_that_the_network_stops_before_are_left_out_and_come_back_without_use(tmp_path):
    model = small(depth=1)
    tensors = their_tensors(small())
    loaded, lines = load(model, tensors)
    assert not any("deep" in path for path in loaded)
    assert "2 tensors of layers that Small stops before are left out" in lines
    export_weights(model, variables_of(model), tmp_path / "out.safetensors", "torchvision")
    back = load_file(tmp_path / "out.safetensors")
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in tensors.items()}
    assert not back["encoder.conv2.weight"].any()
    shallow = {name: tensor for name, tensor in tensors.items() if "conv2" not in name}
    again, lines = load(model, shallow)
    assert_equal(again, loaded)
    assert not any("stops before" in line for line in lines)


@pytest.mark.parametrize(
    ("library", "options"), [("torchvision", {}), ("keras", {"uneven_padding": True, "epsilon": 1e-3})]
)
def test_mobilenet_v2_gives_expanded_features_from_a_classifiers_weights(library, options):
    """What stands behind the last of them, in the last block a BatchNorm, is without use."""
    whole = create_model("unet_pix2pix", backbone="mobilenet_v2", num_classes=2).backbone
    layout = BACKBONE_LAYOUTS[library](whole)
    flat = flatten_dict(backbone_shapes(whole))
    tensors = {e.name: np.ones(e.their_shape(flat[e.path].shape), np.float32) for e in layout.entries}
    options = {**options, "expanded_features": True}
    model = create_model("unet_pix2pix", backbone="mobilenet_v2", num_classes=2, backbone_options=options)
    loaded, lines = read(model, tensors)
    assert loaded.keys() == {(path[0], "backbone", *path[1:]) for path in flatten_dict(backbone_shapes(model.backbone))}
    assert "9 tensors of layers that UNetPix2Pix stops before are left out" in lines
    assert not any("backbone_options" in line for line in lines)
    # So much of a network that another library has not can't be exported under its names.
    assert not any(find(model) for find in MODEL_LAYOUTS.values())
    assert smp.model_layout(create_model("unet", backbone="mobilenet_v2", num_classes=2)) is not None
    for family in ("unet", "deeplabv3"):
        on_expanded = create_model(family, backbone="mobilenet_v2", num_classes=2, backbone_options=options)
        assert not any(find(on_expanded) for find in MODEL_LAYOUTS.values())


def backbone_shapes(backbone):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images)


def test_an_option_that_leaves_no_tensor_must_be_that_of_the_weights(monkeypatch):
    find = BACKBONE_LAYOUTS["torchvision"]
    form = {"backbone_options.epsilon": 1e-3}
    monkeypatch.setitem(BACKBONE_LAYOUTS, "torchvision", lambda module: find(module)._replace(form=form))
    model = small()
    with pytest.raises(UserError, match=r"backbone_options\.epsilon is 0\.001 there and 1e-05 here"):
        read(model, classifier_file(model))
    # Whoever knows better names it, and is told that it is so.
    lines = read_weights(model, classifier_file(model), may_differ=["backbone_options.epsilon"]).report
    assert any("backbone_options.epsilon is 1e-05 here and 0.001 in torchvision's" in line for line in lines)
    _, lines = read(model.clone(backbone=SmallBackbone(epsilon=1e-3)), classifier_file(model))
    assert not any("epsilon" in line for line in lines)


@pytest.mark.parametrize("name", ["epsilon", "backbone_options.epsilom", "backbone_options.epsilon.more", "apply"])
def test_what_may_differ_must_be_an_option_of_the_model(name):
    with pytest.raises(UserError, match=f"no option '{name}'"):
        read_weights(small(), classifier_file(small()), may_differ=[name])
    with pytest.raises(UserError, match="a list of names"):
        read_weights(small(), classifier_file(small()), may_differ="depth")


def test_the_normalisation_of_weights_can_be_asked_for(bgr):
    mean, std = normalisation(small(), classifier_file(small()))
    assert mean == (0.48, 0.46, 0.41) and std == (1 / 255,) * 3


# --------------------------------------------------------------------------------------------------------- a wrong file


def test_faults_of_all_kinds_are_listed_together():
    tensors = classifier_file(small())
    del tensors["bn1.running_var"]
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :, :2, :2]
    tensors["conv2.bias"] = tensors["conv2.bias"].astype(np.int8)
    tensors["conv9.weight"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as caught:
        read(small(), tensors)
    first, *faults = str(caught.value).splitlines()
    assert re.fullmatch(
        r"weights: the tensors given is not a SmallBackbone under torchvision's names( \(the nearest of .*\))?:", first
    )
    assert [line.strip() for line in faults] == [
        "conv1.weight is (4, 3, 2, 2), (4, 3, 3, 3) is due",
        "missing bn1.running_var (4,)",
        "conv2.bias is int8, a float is due",
        "left over conv9.weight (5,)",
    ]


@pytest.mark.parametrize("tensor", [np.zeros(()), np.zeros((3, 3)), np.zeros((4, 3, 3, 3, 1))])
@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.bn1.weight", "head.weight", "head.bias"])
def test_another_number_of_axes_is_a_fault(name, tensor):
    with pytest.raises(UserError, match=re.escape(f"{name} is {tensor.shape}, ")):
        read(small(), their_tensors(small()) | {name: tensor.astype(np.float32)})


def test_the_file_of_another_backbone_is_refused_with_the_first_dozen_faults():
    files = {
        name: {entry.name: np.zeros(1, np.float32) for entry in torchvision.backbone_layout(BACKBONES[name]()).entries}
        for name in ("mobilenet_v2", "resnet18")
    }
    model = create_model("deeplabv3plus", backbone="mobilenet_v2", num_classes=3)
    with pytest.raises(UserError, match=r"not a mobilenet_v2(?s:.*)missing ") as caught:
        read_weights(model, files["resnet18"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 14
    assert lines[-1].strip().startswith("... and ")


def test_the_nearest_layout_is_the_one_whose_faults_are_listed():
    model = create_model("unet", backbone="resnet18", num_classes=5)
    tensors = their_tensors(model, layout="smp")
    del tensors["decoder.blocks.0.conv1.0.weight"]
    with pytest.raises(UserError) as caught:
        read_weights(model, tensors)
    first, fault = str(caught.value).splitlines()
    assert "is not a UNet under smp's names (the nearest of smp, " in first
    assert fault.strip().startswith("missing decoder.blocks.0.conv1.0.weight (256, ")


def test_fcns_on_vgg_take_the_classifiers_dense_layers_as_convolutions():
    model = create_model("fcn", backbone="vgg16", num_classes=3, width=16)
    shapes, rng = shapes_of("fcn", "vgg16"), np.random.default_rng(0)
    backbone = {
        entry.name: np.zeros(entry.their_shape(shapes[(entry.path[0], "backbone", *entry.path[1:])]), np.float32)
        for entry in torchvision.backbone_layout(model.backbone).entries
    }
    sizes = {"classifier.0.weight": (16, 512 * 7 * 7), "classifier.3.weight": (16, 16)}
    sizes |= {"classifier.0.bias": (16,), "classifier.3.bias": (16,), "classifier.6.bias": (1000,)}
    dense = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    loaded, lines = read(model, backbone | dense)
    # At one place the convolution is the dense layer on what is flattened as C, H, W.
    features = rng.normal(size=(512, 7, 7)).astype(np.float32)
    due = dense["classifier.0.weight"] @ features.ravel()
    got = np.einsum("chw,hwco->o", features, loaded["params", "fc6", "kernel"])
    np.testing.assert_allclose(got, due, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(loaded["params", "fc7", "kernel"][0, 0], dense["classifier.3.weight"].T)
    np.testing.assert_array_equal(loaded["params", "fc6", "bias"], dense["classifier.0.bias"])
    assert lines[0].startswith("30 tensors of vgg16") and "1 without use" in lines[0]
    assert lines[1] == "initialised anew, for a classifier has none: score, score_pool3, score_pool4"
    # Without them, or in another width, the backbone is taken.
    for other, source in ((model, backbone), (model.clone(width=8), backbone | dense)):
        loaded, lines = read(other, source)
        assert {path[1] for path in loaded} == {"backbone"}
        assert lines[1].startswith("initialised anew, for a classifier has none: fc6, fc7, ")


def test_another_familys_model_is_refused():
    source, model = (create_model(family, backbone="resnet18", num_classes=5) for family in ("unet", "deeplabv3plus"))
    with pytest.raises(UserError, match=r"is not a DeepLabV3Plus under smp's names(?s:.*)missing decoder\.aspp"):
        read_weights(model, their_tensors(source, layout="smp"))


@pytest.mark.parametrize("tensors", [{}, {"": np.zeros(1)}, {"a.b.c": np.zeros(1)}])
def test_a_source_with_nothing_of_ours_is_refused(tensors):
    with pytest.raises(UserError, match=r"the tensors given is not a .*Small"):
        read(small(), tensors)


def test_a_tensor_of_the_backbone_that_the_library_has_no_name_for_is_refused(monkeypatch):
    monkeypatch.setitem(torchvision.BACKBONES, SmallBackbone, lambda backbone: batch_norm(("bn",), "bn1"))
    with pytest.raises(UserError, match="no name for params/backbone/stem/kernel"):
        read(small(), {n: t for n, t in classifier_file(small()).items() if "bn1" in n})


def test_a_network_of_no_library_is_refused():
    class Own(nn.Module):
        num_classes: int = 2
        in_channels: int = 3

        @nn.compact
        def __call__(self, images, *, train):
            return nn.Conv(2, (1, 1))(images)

    with pytest.raises(UserError, match="can't be used: no library is known to have a Own"):
        read(Own(), {"a": np.zeros(1)})


@pytest.mark.parametrize("kept", [0, 4, 100, -5])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    save_file(classifier_file(small()), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut\.safetensors can't be read as safetensors.*cut short"):
        read(small(), path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(100), b"These are no weights at all.\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors can't be read as safetensors.*another kind"):
        read_safetensors(path)


@pytest.mark.parametrize("name", ["none.safetensors", ""])
def test_a_missing_file_or_a_folder_is_refused_by_its_path(tmp_path, name):
    with pytest.raises(UserError, match=f"cannot read .*{name}"):
        read(small(), tmp_path / name)


def test_a_word_that_is_not_imagenet_is_told_what_there_is():
    with pytest.raises(UserError, match="'imagnet' is neither 'imagenet' nor the path of a weights file"):
        read(small(), "imagnet")


# ------------------------------------------------------------------------------------------------------------ going out


def test_an_unknown_layout_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="unknown layout 'torchvison': did you mean torchvision"):
        export_weights(small(), variables_of(small()), tmp_path / "out.safetensors", "torchvison")


def test_a_library_that_has_no_such_network_names_one_that_has(tmp_path):
    with pytest.raises(UserError, match="smp has no Small on this backbone: there is torchvision"):
        export_weights(small(), variables_of(small()), tmp_path / "out.safetensors", "smp")


def test_variables_of_another_model_are_not_written(tmp_path):
    model = small()
    variables = variables_of(small(7))
    del variables["batch_stats"]["backbone"]["bn"]["var"]
    variables["params"]["more"] = {"kernel": np.zeros(1)}
    path = tmp_path / "out.safetensors"
    path.write_text("what was there")
    with pytest.raises(UserError) as caught:
        export_weights(model, variables, path, "torchvision")
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        "export: the variables are not those of a Small:",
        "missing batch_stats/backbone/bn/var (4,)",
        "left over params/more/kernel",
        "params/classifier/bias is (7,), (5,) is due",
        "params/classifier/kernel is (1, 1, 6, 7), (1, 1, 6, 5) is due",
    ]
    assert path.read_text() == "what was there"


def test_a_tensor_that_the_library_has_no_name_for_is_not_dropped(tmp_path):
    model = create_model("deeplabv3", backbone="resnet18", num_classes=5, aux_head=True)
    with pytest.raises(UserError, match="smp has no name for params/auxiliary/"):
        export_weights(model, variables_of(model), tmp_path / "out.safetensors", "smp")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "out.safetensors"
    path.write_text("what was there")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained.os, "replace", fail)
    with pytest.raises(UserError, match=r"export: .*out\.safetensors can't be written \(No space left on device\)"):
        export_weights(small(), variables_of(small()), path, "torchvision")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "what was there"


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no/out\.safetensors can't be written \(No such file or directory\)"):
        export_weights(small(), variables_of(small()), tmp_path / "no" / "out.safetensors", "torchvision")


def test_a_name_that_would_lie_about_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"out\.pth would be a safetensors file: give it a name that ends in"):
        export_weights(small(), variables_of(small()), tmp_path / "out.pth", "torchvision")
