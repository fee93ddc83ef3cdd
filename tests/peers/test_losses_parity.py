"""Losses and their gradients beside segmentation_models_pytorch's, and where those are left behind."""

import jax
import numpy as np
import pytest

from jaxseg.losses import binary_cross_entropy, dice, focal, jaccard, lovasz, tversky

pytestmark = pytest.mark.peers

CLASSES = 4
WEIGHTS = np.array([0.5, 2.0, 0.25, 1.25], np.float32)


def case(ignored: float = 0.3):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 5, 6, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, 5, 6))
    labels[rng.random(labels.shape) < ignored] = 255
    assert {0, 1, 2, 3} <= set(labels.ravel())
    return logits, labels


def check(torch, ours, theirs, logits, labels):
    """Value and gradient of `theirs(logits, labels)`, tensors in PyTorch's layout, and of `ours`."""
    tensor = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).requires_grad_()
    due = theirs(tensor, torch.from_numpy(labels))
    due.backward()
    loss, grad = jax.value_and_grad(lambda x: ours(x, labels))(logits)
    assert float(loss) == pytest.approx(due.item(), rel=1e-5)
    np.testing.assert_allclose(grad, tensor.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(dice, "DiceLoss", {}), (jaccard, "JaccardLoss", {}), (tversky, "TverskyLoss", {"alpha": 0.3, "beta": 0.7})],
)
def test_overlaps_equal_smp_where_all_classes_are_present(ours, theirs, options, weights, torch, smp):
    options = options | {"ignore_index": 255, "class_weights": None if weights is None else weights.tolist()}
    loss = getattr(smp.losses, theirs)("multiclass", **options)
    check(torch, lambda x, y: ours(x, y, class_weights=weights), loss, *case())


def test_smp_counts_an_absent_class_as_perfect_and_it_is_left_out_here(torch, smp):
    logits, labels = case()
    labels[labels == 1] = 3
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)
    check(torch, dice, lambda x, y: theirs(x, y) * CLASSES / (CLASSES - 1), logits, labels)


def test_lovasz_equals_smp_with_a_class_absent(torch, smp):
    logits, labels = case()
    check(torch, lovasz, smp.losses.LovaszLoss("multiclass", ignore_index=255), logits, labels)
    labels[labels == 1] = 3
    check(torch, lovasz, smp.losses.LovaszLoss("multiclass", ignore_index=255), logits, labels)


def test_focal_equals_smp_over_the_valid_pixels(torch, smp):
    softmax_focal = smp.losses._functional.softmax_focal_loss_with_logits

    def theirs(logits, labels):
        valid = labels != 255
        return softmax_focal(logits.movedim(1, -1)[valid], labels[valid])

    check(torch, focal, theirs, *case())


def test_binary_cross_entropy_equals_smp_without_ignored_pixels_and_pytorch_over_the_valid_ones(torch, smp):
    def one_hot(labels):
        return torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()

    soft = smp.losses.SoftBCEWithLogitsLoss(ignore_index=None)
    check(torch, binary_cross_entropy, lambda x, y: soft(x, one_hot(y)), *case(ignored=0.0))

    def valid_ones(logits, labels):
        valid = labels != 255
        due = torch.nn.functional.one_hot(labels[valid], CLASSES).float()
        return torch.nn.functional.binary_cross_entropy_with_logits(logits.movedim(1, -1)[valid], due)

    check(torch, binary_cross_entropy, valid_ones, *case())
