"""PyTorch's libraries beside a CPU build of PyTorch, and what every comparison with them needs."""

import importlib
import json
import os
import sys

import pytest

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


def _import_torchvision():
    """torchvision's wheel is built for CUDA: beside a CPU PyTorch its operators are missing and the import fails.

    With the schemas of the two operators that it registers fakes for, it imports; networks need neither.
    """
    torch = pytest.importorskip("torch")
    try:
        return importlib.import_module("torchvision")
    except ImportError:
        pytest.skip("no torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        try:
            torch.library.define(f"torchvision::{operator}", schema)
        except RuntimeError as error:
            if "already" not in str(error) and "multiple times" not in str(error):
                raise
    return importlib.import_module("torchvision")


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def torchvision():
    return _import_torchvision()


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
