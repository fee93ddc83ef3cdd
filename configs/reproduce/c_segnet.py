"""Project C's SegNet with 40 filters everywhere, nuclei in MoNuSeg.

    python -m jaxseg.main --config=configs/reproduce/c_segnet.py --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_segnet.py:as_published --config.data.dir=MONUSEG

Source: arslanamin14/Image-Segmentation, commit 0aa389d. Setting: `reproduce.project_c`. `as_published` deals out
patches that overlap by half, so that validation pixels are in training too, and draws test nuclei with a rim that
training's masks have not. Two logits with a softmax stand for the project's one with a sigmoid, which is the same
function. Scores are of patches; `--mode=eval --split=test_images --config.eval.protocol=slide --config.eval.size=256
--config.eval.stride=128` scores whole images, put together from them.

Published: test patches 0.9028 / 0.7664 / 0.9582; validation patches, which share pixels with training, 0.8946 /
0.8090 / 0.9560 (accuracy / F1 / "Dice", the last by a definition that gives (1 + accuracy) / 2).

Not run yet.
"""

from configs.reproduce import project_c, publish, start

PUBLISHED = {"pixel_accuracy": 0.9028, "published/f1": 0.7664, "published/dice": 0.9582}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_c(config, "as_published" in words, floor=1e-5)
    config.model.name, config.model.backbone = "segnet", "constant"
    return publish(config, "MoNuSeg, 504 test patches of 256x256", PUBLISHED, split="test")
