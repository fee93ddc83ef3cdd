"""What every comparison with a reference network needs: the same weights in both, the same images, and the measure.

A reference is a `torch.nn.Module` with random weights and statistics (the fixture `randomise`); `ours` is what
`create_model` gives. Weights go over by `load_pretrained` and back by `export_weights`, so the tables of names are
tested by the same comparisons.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jaxseg.losses import cross_entropy
from jaxseg.models import FAMILIES
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import BACKBONE_LAYOUTS, MODEL_LAYOUTS, backbone_name, export_weights, load_pretrained
from jaxseg.models.pretrained.entries import option

NUM_CLASSES = 5
AUX_WEIGHT = 0.4

# 'family backbone' to reference to the largest error of its logits, for the table of the zoo; see conftest.
DIFFERENCES: dict[str, dict[str, float]] = {}
LIBRARIES = {"segmentation_models_pytorch": "SMP", "torchvision": "torchvision"}


def pictures(*shape: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Normalised images `[B, H, W, channels]`."""
    return np.random.default_rng(seed).normal(size=(*shape, channels)).astype(np.float32)


def relative_error(ours, due) -> float:
    """The largest difference over the largest value."""
    ours, due = np.asarray(ours), np.asarray(due)
    assert ours.shape == due.shape
    return float(np.abs(ours - due).max() / np.abs(due).max())


def to_theirs(images: np.ndarray):
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def to_ours(features) -> np.ndarray:
    return features.detach().numpy().transpose(0, 2, 3, 1)


def arrays(state_dict) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in state_dict.items()}


def outputs(theirs, images: np.ndarray) -> dict[str, np.ndarray]:
    """Their logits, `out`, and the auxiliary head's, `aux`, where there is one; `[B, H, W, C]`."""
    import torch

    with torch.no_grad():
        result = theirs(to_theirs(images))
    return {key: to_ours(value) for key, value in (result if isinstance(result, dict) else {"out": result}).items()}


def apply(ours, variables, images) -> dict[str, np.ndarray]:
    logits, updates = ours.apply(variables, images, train=False, mutable=["aux"])
    aux = jax.tree.leaves(updates.get("aux", {}))
    return {"out": logits, "aux": aux[0]} if aux else {"out": logits}


def check_logits(ours, theirs, *shapes: tuple[int, int, int], tolerance: float = 1e-4):
    """In evaluation mode the logits are equal to `tolerance` of the largest, on images of the shapes (B, H, W).

    Returns the variables, and the largest error.
    """
    tensors = arrays(theirs.eval().state_dict())
    variables = load_pretrained(ours, tensors, may_differ=chosen(ours), log=lambda line: None)
    run, worst = jax.jit(lambda variables, images: apply(ours, variables, images)), 0.0
    for i, shape in enumerate(shapes):
        images = pictures(*shape, channels=ours.in_channels, seed=i)
        due, got = outputs(theirs, images), run(variables, images)
        assert got.keys() == due.keys()
        errors = {key: relative_error(got[key], due[key]) for key in due}
        assert max(errors.values()) <= tolerance, (shape, errors)
        worst = max(worst, *errors.values())
    library = LIBRARIES.get(type(theirs).__module__.split(".")[0])
    if library:
        known, reference = DIFFERENCES.setdefault(name_of(ours), {}), f"{library} {type(theirs).__name__}"
        known[reference] = max(worst, known.get(reference, 0.0))
    return variables, worst


def chosen(ours) -> list[str]:
    """Options of ours that a library has other defaults for and lets its users choose; theirs is built with ours."""
    layouts = [layout for find in MODEL_LAYOUTS.values() if (layout := find(ours))]
    return [
        name
        for layout in layouts
        for name in layout.choices
        if name in layout.form and layout.form[name] != option(ours, name)
    ]


def name_of(ours) -> str:
    """'family backbone' of a network."""
    for family, networks in FAMILIES.items():
        for backbone, network in networks.items():
            if type(ours) is network and (backbone not in BACKBONES or backbone == backbone_name(ours.backbone)):
                return f"{family} {backbone}"
    raise AssertionError(f"{type(ours)} is in no family")


def check_export(ours, variables, theirs, layout: str, folder):
    """Exported, the tensors load strictly into their network and are, one by one, those that came from it."""
    import torch

    before = arrays(theirs.state_dict())
    path = folder / "exported.safetensors"
    export_weights(ours, variables, path, layout=layout, may_differ=chosen(ours))
    tensors = load_file(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
    theirs.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)


def check_training_step(ours, theirs, shape: tuple[int, int, int], layout: str, tolerance: float = 1e-3):
    """The loss, the gradient of every parameter and the new running statistics; dropout is off in both.

    In float64: in float32 a few activations fall on the other side of a kink, and gradients differ by whole values.
    PyTorch stores n / (n - 1) of the variance that a batch has, Flax the variance: the factor is taken out.
    """
    import torch

    theirs.double().train()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    images = pictures(*shape, channels=ours.in_channels)
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, shape)
    labels[:, :5] = 255

    values_a_channel = {}

    def count(name):
        def hook(module, inputs, output):
            values_a_channel[name] = inputs[0].numel() // inputs[0].shape[1]

        return hook

    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(count(name))
    result = theirs(to_theirs(images).double())
    result = result if isinstance(result, dict) else {"out": result}
    losses = {
        key: torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), ignore_index=255)
        for key, logits in result.items()
    }
    their_loss = losses["out"] + AUX_WEIGHT * losses.get("aux", 0.0)
    their_loss.backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    due = arrays(theirs.state_dict() | grads)
    for name, n in values_a_channel.items():
        momentum = theirs.get_submodule(name).momentum
        kept = (1 - momentum) * before[f"{name}.running_var"].numpy()
        due[f"{name}.running_var"] = kept + (due[f"{name}.running_var"] - kept) * (n - 1) / n

    variables = load_pretrained(ours, arrays(before), may_differ=chosen(ours), log=lambda line: None)
    paths, entries = flatten_dict(variables).keys(), MODEL_LAYOUTS[layout](ours).entries
    due = {entry.path: entry.to_ours(due[entry.name]) for entry in entries if entry.path in paths}
    wide = {"dtype": jnp.dtype("float64")}
    if getattr(ours, "dropout", 0.0):
        wide["dropout"] = 0.0
    if getattr(ours, "backbone", None) is not None:
        wide["backbone"] = ours.backbone.clone(dtype=jnp.dtype("float64"))
    ours = ours.clone(**wide)

    def step(variables):
        def loss_fn(params):
            logits, updates = ours.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats", "aux"]
            )
            loss = cross_entropy(logits, labels)
            for aux in jax.tree.leaves(updates.pop("aux", {})):
                loss += AUX_WEIGHT * cross_entropy(aux, labels)
            return loss, updates

        return jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])

    with jax.enable_x64(True):
        # It runs once: what optimising the program takes is more than what it saves.
        step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
        (loss, updates), grads = jax.tree.map(np.asarray, step(jax.tree.map(np.float64, variables)))
    assert float(loss) == pytest.approx(their_loss.item(), rel=1e-5)
    got = flatten_dict({"params": grads, **updates})
    assert got.keys() == due.keys()
    # Some gradients are 0 but for rounding: a bias whose effect the next BatchNorm takes away.
    nothing = 1e-6 * max(np.abs(due[path]).max() for path in due if path[0] == "params")
    errors = {path: np.abs(got[path] - due[path]).max() / max(np.abs(due[path]).max(), nothing) for path in due}
    assert {path: error for path, error in errors.items() if not error < tolerance} == {}


def feature_error(backbone, theirs, layers, images: np.ndarray, layout: str = "torchvision", dtype="float32") -> float:
    """The largest of the relative errors of the five features; theirs are taken at the modules named `layers`.

    `theirs` is a classifier of the library `layout`; its tensors go over by the backbone's layout.
    """
    import torch

    backbone, images = backbone.clone(dtype=jnp.dtype(dtype)), images.astype(dtype)
    theirs, features = theirs.to(getattr(torch, dtype)), {}

    def keep(layer):
        def hook(module, inputs, output):
            features[layer] = to_ours(output).copy()

        return hook

    for layer in layers:
        theirs.get_submodule(layer).register_forward_hook(keep(layer))
    with torch.no_grad():
        theirs.eval()(to_theirs(images))
    tensors = arrays(theirs.state_dict())
    entries = BACKBONE_LAYOUTS[layout](backbone).entries
    variables = unflatten_dict({entry.path: entry.to_ours(tensors[entry.name]).astype(dtype) for entry in entries})
    with jax.enable_x64(dtype == "float64"):
        ours = jax.jit(lambda variables, images: backbone.apply(variables, images, train=False))(variables, images)
        return max(relative_error(feature, features[layer]) for feature, layer in zip(ours, layers, strict=True))
