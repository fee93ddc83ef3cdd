"""Project C's U-Net of 16 to 256 filters, nuclei in MoNuSeg.

    python -m jaxseg.main --config=configs/reproduce/c_unet.py --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_unet.py:as_published --config.data.dir=MONUSEG

Setting: `reproduce.project_c`. Published: test patches 0.9055 / 0.7715 / 0.9587; validation patches, which share
pixels with training, 0.9555 / 0.9216 / 0.9809 (accuracy / F1 / "Dice", the last by a definition that gives (1 +
accuracy) / 2).

As published the first convolution of every block is dead, its output never used: one convolution a block.

Not run yet.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_c, publish, start

PUBLISHED = {"pixel_accuracy": 0.9055, "published/f1": 0.7715, "published/dice": 0.9587}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_c(config, "as_published" in words, floor=1e-4)
    config.model.name, config.model.backbone = "unet", "plain"
    options = {"width": 16, "depth": 4, "batch_norm": True, "up_kernel_size": 3, "dropout": 0.05}
    config.model.options = ConfigDict(options | {"convs": 1 if "as_published" in words else 2})
    return publish(config, "MoNuSeg, 504 test patches of 256x256", PUBLISHED, split="test")
