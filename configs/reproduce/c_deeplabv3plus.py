"""Project C's DeepLabV3+ on Xception-65 from scratch, nuclei in MoNuSeg.

    python -m jaxseg.main --config=configs/reproduce/c_deeplabv3plus.py --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_deeplabv3plus.py:as_published --config.data.dir=MONUSEG

Setting: `reproduce.project_c`, with batches of 8. Published: test patches 0.9090 / 0.7858 / 0.9588; validation
patches, which share pixels with training, 0.9635 / 0.9347 / 0.9847 (accuracy / F1 / "Dice", the last by a definition
that gives (1 + accuracy) / 2).

Ours, 1 of 50 epochs, seed 0: validation (images held out) accuracy 0.6729, F1 0.2346, mean IoU 0.3975;
11 minutes on two CPU cores. In full it was not run.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_c, publish, start

PUBLISHED = {"pixel_accuracy": 0.9090, "published/f1": 0.7858, "published/dice": 0.9588}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_c(config, "as_published" in words, floor=1e-5)
    config.data.batch_size, config.train.eval_every = 8, 972 // 8
    config.model.name, config.model.backbone = "deeplabv3plus", "xception65"
    options = {"rates": (6, 12, 18), "aspp_out": False, "decoder_convs": 2, "norm_between": True, "dropout": 0.1}
    config.model.options = ConfigDict(options)
    return publish(config, "MoNuSeg, 504 test patches of 256x256", PUBLISHED, split="test")
