"""What the README tells to write runs."""

import pathlib
import re

import jax
import numpy as np
import optax

import jaxseg
from jaxseg import config as configs
from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD

BLOCKS = re.findall(r"```python\n(.*?)```", (pathlib.Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def block(word: str) -> str:
    [found] = [text for text in BLOCKS if word in text]
    return found


def test_a_training_loop_of_ones_own():
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (jax.device_count(), 32, 32, 3), dtype=np.uint8),
        "labels": rng.integers(0, 3, (jax.device_count(), 32, 32), dtype=np.uint8),
    }
    model = jaxseg.create_model("unet", backbone="plain", num_classes=3, width=4, depth=2)
    names = {"model": model, "optax": optax, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "batches": [batch] * 2}
    exec(block("create_train_step"), names)
    assert np.isfinite(names["losses"]["loss"]) and int(names["state"].step) == 2


def test_a_config_of_ones_own():
    names = {}
    exec(block("def get_config"), names)
    config = names["get_config"]()
    configs.validate(config)
    assert (config.data.name, config.model.backbone) == ("folder", "resnet50")
