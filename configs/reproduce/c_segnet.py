"""Project C's SegNet with 40 filters everywhere, nuclei in MoNuSeg.

    python -m jaxseg.main --config=configs/reproduce/c_segnet.py --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_segnet.py:as_published --config.data.dir=MONUSEG

Setting: `reproduce.project_c`. Published: test patches 0.9028 / 0.7664 / 0.9582; validation patches, which share
pixels with training, 0.8946 / 0.8090 / 0.9560 (accuracy / F1 / "Dice", the last by a definition that gives (1 +
accuracy) / 2).

Not run yet.
"""

from configs.reproduce import project_c, publish, start

PUBLISHED = {"pixel_accuracy": 0.9028, "published/f1": 0.7664, "published/dice": 0.9582}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_c(config, "as_published" in words, floor=1e-5)
    config.model.name, config.model.backbone = "segnet", "constant"
    return publish(config, "MoNuSeg, 504 test patches of 256x256", PUBLISHED, split="test")
