"""Weight files of PyTorch and of Keras: every form of a right one is read alike, and a wrong one is refused by name."""

import collections
import os
import pickle
import re
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import files, keras
from jaxseg.models.pretrained.files import READERS, as_array, read_tensors


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def assert_equal(tensors: dict, due: dict):
    assert list(tensors) == list(due)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, due[name], err_msg=name)


# ------------------------------------------------------------------------------------------------------------- any file


def test_tensors_of_bfloat16_are_widened_whoever_made_them(torch):
    ones = [np.ones(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16), torch.ones(3, dtype=torch.bfloat16)]
    for array in map(as_array, ones):
        assert type(array) is np.ndarray and array.dtype == np.float32
        np.testing.assert_array_equal(array, np.ones(3))
    assert as_array(np.ones(3, np.float64)).dtype == np.float64


@pytest.mark.parametrize("name", ["none.pth", "none.h5", "none.weights.h5", "none.zip", "."])
def test_a_missing_file_or_a_folder_is_refused_by_its_path(name, tmp_path):
    with pytest.raises(UserError, match=f"cannot read .*{name}"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.keras", "weights", "weights.npz"])
def test_an_unknown_ending_is_refused_with_those_there_are(name, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UserError, match=rf"{name} is of no known kind: .* \.safetensors, \.pth, \.pt, \.h5"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"These are no weights at all.\n", b"<!DOCTYPE html>", bytes(4096)])
@pytest.mark.parametrize("ending", READERS)
def test_a_file_of_another_kind_is_refused(ending, content, tmp_path, torch, h5py):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\{ending} can't be read as .*another kind of file, or cut short"):
        read_tensors(path)


def test_safetensors_may_be_bfloat16(tmp_path, torch):
    from safetensors.torch import save_file

    save_file({"a": torch.tensor([1.0, 1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "half.safetensors")["a"].astype(np.float32), [1, 1.5, -2])


# -------------------------------------------------------------------------------------------------------------- PyTorch


def state_dict(torch):
    return collections.OrderedDict(
        {
            "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
            "bn.running_var": torch.tensor([0.5, 1.5]).half(),
            "bn.weight": torch.nn.Parameter(torch.tensor([1.0, -2.0]).bfloat16()),
            "bn.num_batches_tracked": torch.tensor(7),
        }
    )


@pytest.mark.parametrize("ending", [".pth", ".pt"])
@pytest.mark.parametrize("in_a_zip", [True, False])
@pytest.mark.parametrize("around", [None, "state_dict", "model"])
def test_a_state_dict_is_read_plain_or_from_within(around, in_a_zip, ending, tmp_path, torch):
    tensors = state_dict(torch)
    content = {"epoch": 3, around: tensors, "best": 0.5} if around else tensors
    path = tmp_path / f"weights{ending}"
    torch.save(content, path, _use_new_zipfile_serialization=in_a_zip)
    assert_equal(read_tensors(path), {name: tensor.detach().float().numpy() for name, tensor in tensors.items()})


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "old pickle"])
def test_a_file_that_would_execute_code_is_refused_and_executes_none(form, tmp_path, torch):
    path, trace = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"state_dict": state_dict(torch), "more": Harm(trace)}
    if "pickle" in form:
        path.write_bytes(pickle.dumps({"more": Harm(trace)}, protocol=2 if form == "old pickle" else None))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"evil\.pth is refused: reading it would execute code.*a state dict"):
        read_tensors(path)
    assert not trace.exists()


def test_a_whole_module_is_code_and_is_named(tmp_path, torch):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"would execute code \(torch\.nn\.modules\.conv\.Conv2d\).*state_dict\(\)"):
        read_tensors(tmp_path / "module.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"state_dict": {"a": [1.0]}}, {"state_dict": {}}])
def test_a_checkpoint_without_a_state_dict_is_refused(content, tmp_path, torch):
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth holds no state dict: tensors by name are due"):
        read_tensors(tmp_path / "none.pth")


@pytest.mark.parametrize("kept", [1, 4, 100, 0.5, -30])
@pytest.mark.parametrize("in_a_zip", [True, False])
def test_a_checkpoint_cut_short_is_refused(in_a_zip, kept, tmp_path, torch):
    path = tmp_path / "cut.pth"
    torch.save(state_dict(torch), path, _use_new_zipfile_serialization=in_a_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"cut\.pth (can.t be read as a PyTorch .*\(.+\); |is refused).*cut short"):
        read_tensors(path)


def test_another_zip_is_refused(tmp_path, torch):
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match=r"other\.pt can't be read as a PyTorch checkpoint"):
        read_tensors(tmp_path / "other.pt")


@pytest.mark.parametrize(("name", "library"), [("a.pth", "torch"), ("a.weights.h5", "h5py")])
def test_a_missing_library_is_said(name, library, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{name} needs .* to be read .*pip install {library}"):
        read_tensors(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------- Keras


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


# Layers in a model's order, with the variables in Keras' order. Eleven BatchNorms: `_10` sorts behind `_2`.
LAYERS = {
    "first": {"kernel": numbers(3, 3, 3, 8), "bias": numbers(8)},
    "thin": {"kernel": numbers(3, 3, 8, 1)},
    "both": {"depthwise_kernel": numbers(3, 3, 8, 1), "pointwise_kernel": numbers(1, 1, 8, 4)},
    **{
        f"norm{i}": {name: numbers(4) + i for name in ("gamma", "beta", "moving_mean", "moving_variance")}
        for i in range(11)
    },
    "out": {"kernel": numbers(4, 10), "bias": numbers(10)},
}
CLASSES = {"first": "conv2d", "thin": "depthwise_conv2d", "both": "separable_conv2d", "out": "dense"}
TENSORS = {f"{layer}/{name}": tensor for layer, named in LAYERS.items() for name, tensor in named.items()}


def class_of(layer: str) -> str:
    return CLASSES.get(layer, "batch_normalization" + f"_{layer[4:]}".removesuffix("_0"))


def write_legacy(group, variable_name: str):
    """As Keras 1, 2 and 3 write `.h5`; between the layers one without variables."""
    group.attrs["layer_names"] = [name.encode() for name in ["input", *LAYERS, "pool"]]
    for layer in ("input", "pool"):
        group.create_group(layer).attrs["weight_names"] = np.array([], "S1")
    for layer, variables in LAYERS.items():
        names = {name: variable_name.format(layer=layer, name=name) for name in variables}
        group.create_group(layer).attrs["weight_names"] = [name.encode() for name in names.values()]
        for name, tensor in variables.items():
            group[layer][names[name]] = tensor


@pytest.mark.parametrize("whole_model", [False, True])
@pytest.mark.parametrize("variable_name", ["{layer}/{name}:0", "{layer}/{name}", "{layer}_{name}_1:0"])
def test_legacy_files_of_all_versions_are_read_in_the_models_order(variable_name, whole_model, tmp_path, h5py):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file.create_group("model_weights") if whole_model else file, variable_name)
    assert_equal(read_tensors(tmp_path / "weights.h5"), TENSORS)


def test_names_that_are_too_many_for_one_attribute_are_put_together(tmp_path, h5py):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_legacy(file, "{layer}/{name}:0")
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        for i, name in enumerate(names):  # more than ten: `layer_names10` sorts behind `layer_names2`
            file.attrs[f"layer_names{i}"] = [name]
    assert_equal(read_tensors(tmp_path / "weights.h5"), TENSORS)


def write_keras_3(file, named: bool):
    for layer, variables in LAYERS.items():
        group = file.create_group(f"layers/{class_of(layer)}/vars")
        if named:
            group.attrs["name"] = layer
        for i, tensor in enumerate(variables.values()):
            group[str(i)] = tensor
    file.create_group("layers/input_layer/vars")
    file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
    file["optimizer/vars/0"] = np.zeros(3)


@pytest.mark.parametrize("named", [True, False])
def test_files_of_keras_3_are_read_in_the_order_of_each_class(named, tmp_path, h5py):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        write_keras_3(file, named)
    due = {
        f"{layer if named else class_of(layer)}/{name}": tensor
        for layer in sorted(LAYERS, key=lambda layer: CLASSES.get(layer, "batch_normalization"))
        for name, tensor in LAYERS[layer].items()
    }
    assert_equal(read_tensors(tmp_path / "a.weights.h5"), due)


def test_two_layers_of_one_name_are_refused(tmp_path, h5py):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        write_keras_3(file, named=True)
        file["layers/batch_normalization_1/vars"].attrs["name"] = "norm0"
    with pytest.raises(UserError, match="two tensors are called norm0/gamma"):
        read_tensors(tmp_path / "a.weights.h5")


def test_hdf5_that_is_not_of_keras_is_refused(tmp_path, h5py):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(UserError, match=r"other\.h5 is HDF5 but holds no layers of a Keras model"):
        read_tensors(tmp_path / "other.h5")


def test_a_layer_that_is_promised_and_missing_is_said(tmp_path, h5py):
    with h5py.File(tmp_path / "half.h5", "w") as file:
        write_legacy(file, "{layer}/{name}:0")
        del file["norm3"]
    with pytest.raises(UserError, match=r"half\.h5 can't be read as Keras' HDF5 \(.*norm3.*\)"):
        read_tensors(tmp_path / "half.h5")


@pytest.mark.parametrize("kept", [4, 100, 0.5, -30])
def test_a_keras_file_cut_short_is_refused(kept, tmp_path, h5py):
    path = tmp_path / "cut.h5"
    with h5py.File(path, "w") as file:
        write_legacy(file, "{layer}/{name}:0")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"cut\.h5 can't be read as Keras' HDF5 \(.+\); .*cut short"):
        read_tensors(path)


# ---------------------------------------------------------------------------------------------- files that nobody means


def refused(path, *words: str) -> str:
    """The message, one line that names the file and `words`."""
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message
    return message


HOSTILE = {
    "text": lambda group, other: group.create_dataset("0", data="a name"),
    "array of text": lambda group, other: group.create_dataset("0", data=np.array([b"a", b"b"])),
    "reference": lambda group, other: group.create_dataset("0", data=group.ref, dtype=ref_dtype()),
    "compound": lambda group, other: group.create_dataset("0", data=np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "complex": lambda group, other: group.create_dataset("0", data=np.zeros(3, np.complex64)),
    "null": lambda group, other: group.create_dataset("0", data=empty()),
    "terabytes": lambda group, other: group.create_dataset("0", (2**40,), "f4"),
    "terabytes in chunks": lambda group, other: group.create_dataset("0", (2**40,), "f4", chunks=(1024,)),
    "never written": lambda group, other: group.create_dataset("0", (3,), "f4"),
    "written in part": lambda group, other: group.create_dataset("0", (30,), "f4", chunks=(10,)).__setitem__(0, 1.0),
    "raw storage": lambda group, other: group.create_dataset("0", (3,), "f4", external=[(str(other), 0, 12)]),
    "external link": lambda group, other: group.__setitem__("0", external_link(other)),
    "virtual": lambda group, other: virtual(group, other),
    "group": lambda group, other: group.create_group("0"),
}


def ref_dtype():
    import h5py

    return h5py.ref_dtype


def empty():
    import h5py

    return h5py.Empty("f4")


def external_link(other):
    import h5py

    return h5py.ExternalLink(str(other), "/data")


def virtual(group, other):
    import h5py

    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "data", (3,))
    group.create_virtual_dataset("0", layout)


@pytest.mark.parametrize("form", HOSTILE)
@pytest.mark.parametrize("kind", ["weights.h5", "h5"])
def test_hdf5_holds_numbers_of_its_own_or_is_refused(form, kind, tmp_path, h5py):
    other, path = tmp_path / "other.h5", tmp_path / f"bad.{kind}"
    with h5py.File(other, "w") as file:
        file["data"] = np.ones(3, np.float32)
    with h5py.File(path, "w") as file:
        if kind == "h5":
            file.attrs["layer_names"] = [b"layer"]
            group = file.create_group("layer")
            group.attrs["weight_names"] = [b"0"]
        else:
            group = file.create_group("layers/dense/vars")
        HOSTILE[form](group, other)
    refused(path, "0")


def test_a_circle_of_groups_in_hdf5_ends(tmp_path, h5py):
    path = tmp_path / "circle.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/a")
        group["layers"] = file["layers"]
    refused(path)


def test_a_dangling_or_soft_link_within_hdf5_is_no_harm(tmp_path, h5py):
    path = tmp_path / "soft.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2), np.float32)
        file["layers/more"] = h5py.SoftLink("/layers/dense")
    np.testing.assert_array_equal(read_tensors(path)["dense/kernel"], np.ones((2, 2)))
    with h5py.File(path, "a") as file:
        file["layers/less"] = h5py.SoftLink("/nothing")
    refused(path)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_safetensors_of_other_types_are_refused_by_the_tensors_name(dtype, tmp_path, torch):
    from safetensors.torch import save_file

    path = tmp_path / "odd.safetensors"
    save_file({"conv.weight": torch.ones(3).to(getattr(torch, dtype))}, path)
    refused(path, "conv.weight")


def odd_tensors(torch) -> dict:
    return {
        "expanded": torch.zeros(1).expand(2**40),
        "sparse": torch.eye(3).to_sparse(),
        "on no device": torch.zeros(3, device="meta"),
        "8 bits": torch.ones(3).to(torch.float8_e5m2),
    }


@pytest.mark.parametrize("form", ["expanded", "sparse", "on no device", "8 bits"])
@pytest.mark.parametrize("in_a_zip", [True, False])
def test_tensors_of_pytorch_that_hold_no_such_numbers_are_refused(form, in_a_zip, tmp_path, torch):
    path = tmp_path / "odd.pth"
    torch.save({"conv.weight": odd_tensors(torch)[form]}, path, _use_new_zipfile_serialization=in_a_zip)
    refused(path, *(["conv.weight"] if in_a_zip else []))


def test_a_state_dict_with_other_names_than_text_is_refused(tmp_path, torch):
    torch.save({1: torch.ones(3)}, tmp_path / "names.pth")
    refused(tmp_path / "names.pth", "state dict")


def test_a_flipped_bit_in_a_zip_of_pytorchs_is_found(tmp_path, torch):
    path, values = tmp_path / "flipped.pth", torch.arange(1000.0)
    torch.save({"a": values}, path)
    content = bytearray(path.read_bytes())
    content[content.find(values.numpy().tobytes()) + 2003] ^= 0x10
    path.write_bytes(content)
    refused(path, "checksum")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": values}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_tensors(path)["a"], values)


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".h5"])
def test_what_is_larger_than_any_network_is_refused(ending, tmp_path, monkeypatch, torch, h5py):
    path = tmp_path / f"large{ending}"
    if ending == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"a": np.zeros(1000, np.float32)}, path)
    elif ending == ".pth":
        torch.save({"a": torch.zeros(1000)}, path)
    else:
        with h5py.File(path, "w") as file:
            # Packed, the file itself is small.
            file.create_dataset("layers/a/vars/0", data=np.zeros((10, 100), np.float32), compression="gzip")
    assert len(read_tensors(path)) == 1
    monkeypatch.setattr(files, "MOST_BYTES", 3999)
    refused(path, "3,999")


@pytest.mark.parametrize("ending", READERS)
def test_only_regular_files_are_opened(ending, tmp_path):
    path = tmp_path / f"pipe{ending}"
    os.mkfifo(path)
    refused(path)
    (tmp_path / f"device{ending}").symlink_to("/dev/zero")
    refused(tmp_path / f"device{ending}")


@pytest.mark.parametrize("name", ["a" * 300 + ".pth", "a" * 5000 + ".h5", "a\0b.safetensors", "\ud800.pth"])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    with pytest.raises(UserError) as caught:
        read_tensors(tmp_path / name)
    str(caught.value).encode()


# ----------------------------------------------------------------------------------------- whatever layers are called

KERAS_BACKBONES = [name for name in ("vgg16", "mobilenet_v1", "mobilenet_v2", "xception") if name in BACKBONES]


def tiny(entry, value: int) -> np.ndarray:
    """A tensor with the right axes and nothing but its number in it."""
    shape = {"vector": (2,), "keras_conv": (1, 1, 2, 2), "keras_depthwise": (1, 1, 2, 1)}[entry.kind]
    return np.full(shape, value, np.float32)


def a_file(entries) -> dict[str, np.ndarray]:
    return {entry.name: tiny(entry, i) for i, entry in enumerate(entries)}


def by_class(tensors) -> dict[str, np.ndarray]:
    """The names that layers have where only their class is known."""
    numbers, names, renamed = collections.Counter(), {}, {}
    classes = {"gamma": "batch_normalization", "depthwise_kernel": "separable_conv2d"}
    for name, tensor in tensors.items():
        layer, variable = name.split("/")
        if layer not in names:
            kernel = "dense" if tensor.ndim == 2 else "depthwise_conv2d" if tensor.shape[-1] == 1 else "conv2d"
            cls = classes.get(variable, kernel)
            names[layer] = f"{cls}_{numbers[cls]}" if numbers[cls] else cls
            numbers[cls] += 1
        renamed[f"{names[layer]}/{variable}"] = tensor
    return dict(sorted(renamed.items(), key=lambda item: re.split("[_/]", item[0])[0]))


@pytest.mark.parametrize("backbone", KERAS_BACKBONES)
def test_layers_are_found_by_name_or_by_their_order(backbone):
    layout = keras.backbone_layout(BACKBONES[backbone]())
    tensors = a_file(layout.entries)
    for theirs in (tensors, dict(reversed(tensors.items())), by_class(tensors)):
        found = layout.rename(theirs)
        assert found.keys() == tensors.keys()
        assert all((found[name] == tensors[name]).all() for name in tensors)


@pytest.mark.parametrize("backbone", KERAS_BACKBONES)
def test_the_classifier_is_without_use_and_all_else_is_left_over(backbone):
    layout = keras.backbone_layout(BACKBONES[backbone]())
    tensors = a_file(layout.entries)
    top = {"fc1/kernel": np.zeros((8, 8)), "fc1/bias": np.zeros(8), "predictions/kernel": np.zeros((8, 3))}
    if backbone.startswith("mobilenet"):
        top |= {"conv_preds/kernel": np.zeros((1, 1, 8, 3)), "conv_preds/bias": np.zeros(3)}
    more = {"block9_conv1/kernel": np.zeros((3, 3, 2, 2)), "block9_bn/gamma": np.zeros(2)}
    for theirs in (tensors | top | more, by_class(tensors | top | more)):
        rest = layout.rename(theirs).keys() - tensors.keys()
        assert len(rest) == len(top) + len(more)
        assert sum(not layout.unused(name) for name in rest) == len(more)


def test_names_of_another_library_stay_what_they_are():
    layout = keras.backbone_layout(BACKBONES["mobilenet_v2"]())
    tensors = {"features.0.0.weight": np.zeros((2, 2, 3, 3)), "features.0.1.bias": np.zeros(2)}
    assert layout.rename(tensors) == tensors


def test_the_encoder_of_deeplab_is_taken_from_the_whole_by_name():
    layout = keras.backbone_layout(BACKBONES["xception65"]())
    assert layout.name == "keras-deeplab-v3-plus"
    assert layout.unused("aspp0/kernel") and layout.unused("custom_logits_semantic/bias")
    assert not layout.unused("middle_flow_unit_17_separable_conv1_depthwise/kernel")


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [("mobilenet_v1", 127.5, 127.5), ("mobilenet_v2", 127.5, 127.5), ("xception", 127.5, 127.5)],
)
def test_the_normalisation_is_that_of_preprocess_input(backbone, mean, std):
    layout = keras.backbone_layout(BACKBONES[backbone]())
    np.testing.assert_allclose(np.multiply(layout.mean, 255), mean, rtol=1e-6)
    np.testing.assert_allclose(np.multiply(layout.std, 255), std, rtol=1e-6)
    assert not layout.bgr
