"""Networks that no PyTorch library has, rebuilt from PyTorch's layers to compare with: same tensors, same images.

A rebuild is a function of `Layers` and images `[B, C, H, W]`; it names layers as ours does.
"""

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import pictures, relative_error, to_ours, to_theirs


def random_variables(model, seed: int = 0) -> dict:
    """Variables that keep activations in bounds, with statistics that hide nothing."""
    images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        if len(shape) > 1:
            return rng.normal(size=shape) * (2 / np.prod(shape[:3])) ** 0.5
        return rng.uniform(0.5, 1.5, shape) if path[-1] in ("scale", "var") else rng.uniform(-0.1, 0.1, shape)

    flat = {path: draw(path, leaf.shape).astype(np.float32) for path, leaf in flatten_dict(shapes).items()}
    return unflatten_dict(flat)


class Layers:
    """PyTorch's layers on our variables, float64; `train` as in ours."""

    def __init__(self, variables, train: bool):
        import torch

        self.torch, self.train = torch, train
        self.tensors = {
            path: torch.from_numpy(np.asarray(leaf, np.float64)).requires_grad_(path[0] == "params")
            for path, leaf in flatten_dict(variables).items()
        }

    def _get(self, *path: str):
        return self.tensors.get(("params", *path))

    def conv(self, x, *path: str, padding=None):
        kernel, bias = self._get(*path, "kernel"), self._get(*path, "bias")
        padding = kernel.shape[0] // 2 if padding is None else padding
        return self.torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=padding)

    def conv_transpose(self, x, *path: str, padding=0):
        kernel, bias = self._get(*path, "kernel"), self._get(*path, "bias")
        return self.torch.nn.functional.conv_transpose2d(x, kernel.permute(3, 2, 0, 1), bias, 2, padding)

    def batch_norm(self, x, *path: str):
        statistics = [self.tensors["batch_stats", *path, name] for name in ("mean", "var")]
        statistics = (None, None) if self.train else statistics
        scale, bias = self._get(*path, "scale"), self._get(*path, "bias")
        return self.torch.nn.functional.batch_norm(x, *statistics, scale, bias, training=self.train)

    def conv_bn(self, x, *path: str):
        return self.batch_norm(self.conv(x, *path, "conv"), *path, "bn")


def check_rebuilt(ours, rebuild, shape: tuple[int, int, int], train: bool) -> None:
    """The logits and, in training, the gradients of all parameters, in float64; dropout must be off."""
    variables, images = random_variables(ours), pictures(*shape, channels=ours.in_channels)
    layers = Layers(variables, train)
    due = rebuild(layers, to_theirs(images).double())
    weights = np.random.default_rng(1).normal(size=to_ours(due).shape)
    (due * to_theirs(weights)).sum().backward()

    backbone = getattr(ours, "backbone", None)
    wide = {"dtype": np.dtype("float64")}
    wide |= {"backbone": backbone.clone(**wide)} if backbone is not None else {}
    wide = ours.clone(**wide)

    def run(params, images):
        def weighted(params):
            logits, _ = wide.apply({**variables, "params": params}, images, train=train, mutable=["batch_stats"])
            return (logits * weights).sum(), logits

        if train:
            (_, logits), grads = jax.value_and_grad(weighted, has_aux=True)(params)
            return logits, grads
        return weighted(params)[1], None

    with jax.enable_x64(True):
        logits, grads = jax.tree.map(np.asarray, jax.jit(run)(jax.tree.map(np.float64, variables["params"]), images))
    # Ours ends in float32.
    assert relative_error(logits, to_ours(due)) <= 1e-6
    if train:
        got = {("params", *path): leaf for path, leaf in flatten_dict(grads).items()}
        due = {path: tensor.grad.numpy() for path, tensor in layers.tensors.items() if path[0] == "params"}
        assert got.keys() == due.keys()
        # Some gradients are 0 but for rounding: a bias whose effect the next BatchNorm takes away.
        nothing = 1e-4 * max(np.abs(leaf).max() for leaf in due.values())
        errors = {path: np.abs(got[path] - due[path]).max() / max(np.abs(due[path]).max(), nothing) for path in due}
        assert {path: error for path, error in errors.items() if not error < 1e-5} == {}
