"""Project C's DeepLabV3+ on Xception-65 from scratch, nuclei in MoNuSeg.

    python -m jaxseg.main --config=configs/reproduce/c_deeplabv3plus.py --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_deeplabv3plus.py:as_published --config.data.dir=MONUSEG

Source: arslanamin14/Image-Segmentation, commit 0aa389d. Setting: `reproduce.project_c`, with batches of 8.
`as_published` deals out patches that overlap by half, so that validation pixels are in training too, and draws test
nuclei with a rim that training's masks have not. Two logits with a softmax stand for the project's one with a
sigmoid, which is the same function. Scores are of patches; `--mode=eval --split=test_images
--config.eval.protocol=slide --config.eval.size=256 --config.eval.stride=128` scores whole images, put together from
them.

Published: test patches 0.9090 / 0.7858 / 0.9588; validation patches, which share pixels with training, 0.9635 /
0.9347 / 0.9847 (accuracy / F1 / "Dice", the last by a definition that gives (1 + accuracy) / 2).

Ours, 1 of 50 epochs, seed 0: validation (images held out) accuracy 0.6729, F1 0.2346, mean IoU 0.3975;
11 minutes on two CPU cores. In full it was not run.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_c, publish, start

PUBLISHED = {"pixel_accuracy": 0.9090, "published/f1": 0.7858, "published/dice": 0.9588}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_c(config, "as_published" in words, floor=1e-5)
    config.data.batch_size = 8
    config.model.name, config.model.backbone = "deeplabv3plus", "xception65"
    options = {"rates": (6, 12, 18), "aspp_out": False, "decoder_convs": 2, "norm_between": True, "dropout": 0.1}
    config.model.options = ConfigDict(options)
    return publish(config, "MoNuSeg, 504 test patches of 256x256", PUBLISHED, split="test")
