"""Three steps of SGD beside PyTorch: parameters, and running statistics but for the one factor that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity import NUM_CLASSES, arrays, pictures, to_theirs

from jaxseg.losses import cross_entropy
from jaxseg.models import create_model
from jaxseg.models.pretrained import MODEL_LAYOUTS, load_pretrained

pytestmark = pytest.mark.peers

STEPS, RATE, SHAPE = 3, 1e-3, (2, 32, 64)


def test_statistics_and_parameters_after_three_steps_equal_smp(torch, smp, randomise):
    """Flax keeps the variance v of a batch where PyTorch keeps n / (n - 1) v: that factor, and no other difference."""
    theirs = randomise(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=NUM_CLASSES)).double().train()
    values_a_channel = {}

    def count(name):
        def hook(module, inputs, output):
            values_a_channel[name] = inputs[0].numel() // inputs[0].shape[1]

        return hook

    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(count(name))
    before = arrays({name: tensor.clone() for name, tensor in theirs.state_dict().items()})
    batches = [
        (pictures(*SHAPE, seed=i), np.random.default_rng(i).integers(0, NUM_CLASSES, SHAPE)) for i in range(STEPS)
    ]
    optimizer = torch.optim.SGD(theirs.parameters(), RATE, momentum=0.9)
    for images, labels in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(to_theirs(images).double()), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()

    ours = create_model("deeplabv3plus", backbone="resnet18", num_classes=NUM_CLASSES, dropout=0.0)
    variables = load_pretrained(ours, before, log=lambda line: None)
    wide = jnp.dtype("float64")
    model, tx = ours.clone(dtype=wide, backbone=ours.backbone.clone(dtype=wide)), optax.sgd(RATE, momentum=0.9)

    @jax.jit
    def step(variables, opt_state, images, labels):
        def loss_fn(params):
            logits, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, labels), updates

        grads, stats = jax.grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        return {"params": optax.apply_updates(variables["params"], updates), **stats}, opt_state

    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        opt_state = tx.init(variables["params"])
        for images, labels in batches:
            variables, opt_state = step(variables, opt_state, images, labels)
        variables = jax.tree.map(np.asarray, variables)

    after = arrays(theirs.state_dict())
    for entry in MODEL_LAYOUTS["smp"](ours).entries:
        got = variables
        for key in entry.path:
            got = got[key]
        due = after[entry.name]
        if entry.path[-1] == "var":
            n = values_a_channel[entry.name.removesuffix(".running_var")]
            kept = (1 - 0.1) ** STEPS * before[entry.name]
            due = kept + (due - kept) * (n - 1) / n
        got = entry.to_theirs(got)
        np.testing.assert_allclose(got, due, rtol=1e-4, atol=1e-6 * np.abs(due).max(), err_msg=entry.name)
