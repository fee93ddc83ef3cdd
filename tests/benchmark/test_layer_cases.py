"""What is timed side by side computes the same: ours, the plain form and PyTorch's, values and gradients."""

import json

import jax
import numpy as np
import pytest

from jaxseg.benchmark import layers
from jaxseg.errors import UserError

SMALL = [
    layers.dense(2, 8, 3, 4),
    layers.dense(2, 8, 3, 4, stride=2, k=7),
    layers.dense(2, 8, 3, 4, dilation=2),
    layers.pointwise(2, 8, 3, 4),
    layers.transposed(2, 8, 3, 4),
    layers.depthwise(2, 8, 3),
    layers.depthwise(2, 8, 3, k=5, stride=2),
    layers.pooled(2, 8, 3),
    layers.pooled(2, 9, 3, 3, 2, 1),
    layers.unpooled(2, 8, 3),
    layers.resized(2, 4, 8, 3),
    layers.normalised(2, 8, 3),
    layers.upsampled_loss(2, 8, 32, 5),
    layers.counted(2, 8, 5),
]


def results(case, function) -> list[np.ndarray]:
    return [
        np.asarray(x)
        for x in jax.tree.leaves(layers._jax(function, case.differentiable)(*case.inputs, *case.constants))
    ]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_ours_is_the_plain_form(case):
    if case.plain is None:
        pytest.skip("there is no other form")
    for ours, plain in zip(results(case, case.ours), results(case, case.plain), strict=True):
        np.testing.assert_allclose(ours.ravel(), plain.ravel(), rtol=0, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_ours_is_pytorchs(case):
    torch = pytest.importorskip("torch")
    y, *grads = results(case, case.ours)
    for gradient in (False, True)[: 1 + case.differentiable]:
        theirs = layers._torch(torch, case, gradient)()
        theirs = theirs if gradient else [theirs]
        for ours, due in zip(grads if gradient else [y], theirs, strict=True):
            due = due.cpu().numpy()
            if due.ndim == 4:
                due = due.transpose((0, 2, 3, 1) if due.shape[0] == 2 else (2, 3, 1, 0))
            np.testing.assert_allclose(ours.ravel(), due.ravel(), rtol=0, atol=1e-4)


def test_the_table_has_what_was_asked_for(capsys):
    layers.main(["confusion", "--rounds=1"])
    out = capsys.readouterr().out.splitlines()
    (result,) = json.loads(out[-1])["layers"]
    assert result["name"] == "confusion matrix, 4x256x256, 21 classes"
    assert set(result["forward"]) == {"jaxseg", "plain"} and result["gradients"] == {}
    cells = [cell.strip() for cell in out[-2].split("|")[1:-1]]
    times = result["forward"]
    assert cells == [result["name"], *(f"{t:.1f}" for t in times.values()), f"{times['plain'] / times['jaxseg']:.2f}"]
    with pytest.raises(UserError, match=r"no layer has pooool in its name: depthwise 3x3"):
        layers.main(["pooool"])
