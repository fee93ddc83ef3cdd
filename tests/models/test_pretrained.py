"""Weights of the PyTorch world: all of a right file is read, and a wrong one is told apart by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import load_backbone, torchvision
from jaxseg.models.pretrained.files import read_safetensors


def a_model(backbone: str):
    return create_model("deeplabv3plus", backbone=backbone, num_classes=3)


def table(backbone: str):
    """torchvision's names for the backbone's tensors."""
    return torchvision.backbone_layout(BACKBONES[backbone]()).entries


def variables_of(backbone: str):
    """Shapes alone; `load_backbone` takes them as it takes arrays."""
    model = a_model(backbone)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))


def their_tensors(backbone: str, variables) -> dict[str, np.ndarray]:
    """Random tensors under torchvision's names and in its layout, and what lies beside them in its files."""
    rng, flat, tensors = np.random.default_rng(0), flatten_dict(variables), {}
    for entry in table(backbone):
        shape = flat[(entry.path[0], "backbone", *entry.path[1:])].shape
        tensor = rng.normal(size=shape).astype(np.float32)
        assert entry.name not in tensors
        tensors[entry.name] = np.ascontiguousarray(np.moveaxis(tensor, (3, 2), (0, 1))) if len(shape) == 4 else tensor
    counters = [name.replace("running_mean", "num_batches_tracked") for name in tensors if "running_mean" in name]
    beside = {"classifier.1.weight": np.zeros((10, 4), np.float32), "fc.bias": np.zeros(10, np.float32)}
    return tensors | beside | {name: np.zeros((), np.int64) for name in counters}


@pytest.fixture(scope="module")
def mobilenet():
    variables = variables_of("mobilenet_v2")
    return variables, their_tensors("mobilenet_v2", variables)


def load(tensors, variables, folder, backbone="mobilenet_v2"):
    save_file(tensors, folder / "weights.safetensors")
    return load_backbone(a_model(backbone), variables, folder / "weights.safetensors")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_table_names_every_tensor_of_its_backbone_once(backbone):
    variables = variables_of(backbone)
    paths = [entry.path for entry in table(backbone)]
    ours = {(key[0], *key[2:]) for key in flatten_dict(variables) if key[1] == "backbone"}
    assert len(paths) == len(set(paths))
    assert set(paths) == ours
    names = [entry.name for entry in table(backbone)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_every_tensor_of_a_right_file_arrives_and_nothing_else_changes(backbone, tmp_path):
    variables = variables_of(backbone)
    tensors = their_tensors(backbone, variables)
    loaded, line = load(tensors, variables, tmp_path, backbone)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    flat, before, names = flatten_dict(loaded), flatten_dict(variables), table(backbone)
    assert len(names) == sum(key[1] == "backbone" for key in flat)
    for entry in names:
        ours, theirs = flat[(entry.path[0], "backbone", *entry.path[1:])], tensors[entry.name]
        assert ours.dtype == np.float32
        if theirs.ndim == 4:
            # [out, in, i, j] of theirs is [i, j, in, out] of ours.
            np.testing.assert_array_equal(ours[0, -1, 0, 1], theirs[1, 0, 0, -1])
            np.testing.assert_array_equal(ours, np.einsum("oihw->hwio", theirs))
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert all(flat[key] is before[key] for key in flat if key[1] != "backbone")
    unused = len(tensors) - len(names)
    assert f"{len(names)} tensors of " in line
    assert f"{unused} without use" in line


def test_half_precision_in_the_file_becomes_float32(mobilenet, tmp_path):
    variables, tensors = mobilenet
    loaded, _ = load({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, variables, tmp_path)
    kernel = loaded["params"]["backbone"]["stem"]["conv"]["kernel"]
    assert kernel.dtype == np.float32
    due = tensors["features.0.0.weight"].astype(np.float16)
    np.testing.assert_array_equal(kernel, np.einsum("oihw->hwio", due))


def test_faults_of_all_kinds_are_listed_together(mobilenet, tmp_path):
    variables, tensors = mobilenet
    wrong = dict(tensors)
    del wrong["features.3.conv.1.1.running_var"]
    wrong["features.0.0.weight"] = wrong["features.0.0.weight"][:, :, :2, :2].copy()
    wrong["features.19.weight"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as caught:
        load(wrong, variables, tmp_path)
    lines = str(caught.value).splitlines()
    assert "not a MobileNetV2" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "features.0.0.weight is (32, 3, 2, 2), (32, 3, 3, 3) is due",
        "missing features.3.conv.1.1.running_var (144,)",
        "left over features.19.weight (5,)",
    ]


def test_a_file_of_another_backbone_is_refused_with_the_first_dozen_faults(mobilenet, tmp_path):
    variables, _ = mobilenet
    with pytest.raises(UserError, match=r"not a MobileNetV2(?s:.*)missing features\.0\.0\.weight") as caught:
        load(their_tensors("resnet18", variables_of("resnet18")), variables, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 14
    assert lines[-1].strip().startswith("... and ")


@pytest.mark.parametrize("kept", [0, 4, 100, -5])
def test_a_file_cut_short_is_refused(mobilenet, tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    save_file(mobilenet[1], path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut\.safetensors can't be read as safetensors.*cut short"):
        read_safetensors(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(100), b"These are no weights at all.\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors can't be read as safetensors.*another kind"):
        read_safetensors(path)


@pytest.mark.parametrize("name", ["none.safetensors", ""])
def test_a_missing_file_or_a_folder_is_refused_by_its_path(tmp_path, name):
    with pytest.raises(UserError, match=f"no file .*{name}"):
        read_safetensors(tmp_path / name)


def test_the_real_mobilenet_loads(mobilenet, shared):
    path = shared / "weights" / "mobilenet_v2_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    variables, _ = mobilenet
    loaded, line = load_backbone(a_model("mobilenet_v2"), variables, path)
    assert line.startswith("260 tensors of MobileNetV2")
    assert "54 without use" in line  # 52 step counters, the classifier's weight and bias
    backbone, theirs = loaded["params"]["backbone"], load_file(path)
    np.testing.assert_array_equal(
        backbone["block_16"]["project"]["conv"]["kernel"][0, 0], theirs["features.17.conv.2.weight"][:, :, 0, 0].T
    )
    stats = jax.tree.leaves(loaded["batch_stats"]["backbone"])
    assert all(isinstance(leaf, np.ndarray) and np.isfinite(leaf).all() for leaf in stats)
