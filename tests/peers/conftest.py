"""PyTorch's libraries beside a CPU build of PyTorch, and what every comparison with them needs."""

import json
import os

import pytest

from jaxseg.benchmark.peers import import_torchvision
from jaxseg.errors import UserError
from jaxseg.models.__main__ import DIFFERENCES


def pytest_sessionfinish(session):
    """With JAXSEG_RECORD set, what was measured goes to the table of the zoo; pairs that were not run stay there."""
    if not os.environ.get("JAXSEG_RECORD"):
        return
    import parity

    found = json.loads(DIFFERENCES.read_text())
    for pair, references in parity.DIFFERENCES.items():
        found[pair] = found.get(pair, {}) | {name: float(f"{value:.2g}") for name, value in references.items()}
    temporary = DIFFERENCES.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, DIFFERENCES)


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def torchvision(torch):
    try:
        return import_torchvision()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smp(torchvision):
    return pytest.importorskip("segmentation_models_pytorch")


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def randomise(torch):
    """Gives every BatchNorm random tensors: fresh ones (0 and 1) hide a swapped mean and variance, and any epsilon."""

    def randomise(model, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor, low, high):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    # Random, and of the size that keeps activations in bounds.
                    fan_in = parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
                else:
                    uniform(parameter, -0.1, 0.1)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.running_var, 0.5, 1.5)
                    uniform(module.running_mean, -0.1, 0.1)
        return model

    return randomise
