"""Project C's U-Net of 16 to 256 filters, nuclei in MoNuSeg.

    python -m jaxseg.main --config=configs/reproduce/c_unet.py --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_unet.py:as_published --config.data.dir=MONUSEG
    python -m jaxseg.main --config=configs/reproduce/c_unet.py:best --config.data.dir=MONUSEG

Source: arslanamin14/Image-Segmentation, commit 0aa389d. Setting: `reproduce.project_c`. `as_published` deals out
patches that overlap by half, so that validation pixels are in training too, and draws test nuclei with a rim that
training's masks have not. Two logits with a softmax stand for the project's one with a sigmoid, which is the same
function. Scores are of patches; `--mode=eval --split=test_images --config.eval.protocol=slide --config.eval.size=256
--config.eval.stride=128` scores whole images, put together from them.

Published: test patches 0.9055 / 0.7715 / 0.9587; validation patches, which share pixels with training, 0.9555 /
0.9216 / 0.9809 (accuracy / F1 / "Dice", the last by a definition that gives (1 + accuracy) / 2).

As published the first convolution of every block is dead, its output never used: one convolution a block.

`best` is a U-Net of our own for the same test patches: on MobileNetV2 with ImageNet weights, cross entropy + Dice,
stains, colours, scales and turns changed at random. All masks are drawn by one rule, a pixel belongs to the nucleus
whose outline its centre is inside of; the project's training masks end there too, its test masks half a pixel further
out.

Ours, seed 0, on two CPU cores that did other work too; accuracy and F1 by the project's definitions, Dice of nuclei:

    as_published, 50 of 50 epochs, 2 h   validation 0.9689 0.9353 0.934   test 0.8915 0.7476 0.752
    best, 12 epochs, 1 h                 validation 0.9303                test 0.9253 0.8162 0.816

`best` on test masks with the project's rim: 0.9170 0.8058 0.806. The sound form was not run.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_c, publish, start

PUBLISHED = {"pixel_accuracy": 0.9055, "published/f1": 0.7715, "published/dice": 0.9587}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published", "best")
    project_c(config, "as_published" in words, floor=1e-4)
    if "best" in words:
        best(config)
    else:
        config.model.name, config.model.backbone = "unet", "plain"
        options = {"width": 16, "depth": 4, "batch_norm": True, "up_kernel_size": 3, "dropout": 0.05}
        config.model.options = ConfigDict(options | {"convs": 1 if "as_published" in words else 2})
    return publish(config, "MoNuSeg, 504 test patches of 256x256", PUBLISHED, split="test")


def best(config: ConfigDict) -> None:
    data, optim, train = config.data, config.optim, config.train
    data.mean, data.std = (), ()
    data.batch_size, data.scale, data.jitter, data.stain = 16, (0.75, 1.5), 0.2, 0.2
    config.model.name, config.model.backbone, config.model.weights = "unet", "mobilenet_v2", "imagenet"
    config.loss.dice = 1.0
    optim.schedule, optim.backbone_lr_scale = "poly", 0.2
    train.num_epochs, train.eval_epochs, train.patience, train.best = 12.0, 2.0, 0, "mean_iou"
