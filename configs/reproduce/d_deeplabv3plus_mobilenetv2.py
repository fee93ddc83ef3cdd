"""Project D's "DeepLabV3+" on MobileNetV2, VOC 2012: a DeepLabV3 with a small pyramid, for it has no skip.

    python -m jaxseg.main --config=configs/reproduce/d_deeplabv3plus_mobilenetv2.py
    python -m jaxseg.main --config=configs/reproduce/d_deeplabv3plus_mobilenetv2.py:as_published

Source: Siri1507/semantic-segmentation, commit 9f3cc8f. Setting: `reproduce.project_d`. `as_published` takes the first
50 training and 20 validation images, reads masks as greys, ignores nothing and leaves images in [0, 1], where the
weights expect -1 to 1.

Published: validation accuracy 0.7727 after 5 epochs (loss 1.1613), training 0.9457; no IoU. As published it was in
effect foreground against background, for nearly all classes were one.

Ours, on the 46 training and 54 validation images of a subset of VOC, 5 epochs from ImageNet weights, seed 0: accuracy
0.7301, mean IoU 0.0708 over the 19 classes that are there, which is next to nothing but background; 22 seconds of steps
on two CPU cores. On all of VOC it was not run.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_d, publish, start

PUBLISHED = {"pixel_accuracy": 0.7727}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_d(config, "as_published" in words)
    config.model.name, config.model.backbone, config.model.output_stride = "deeplabv3", "mobilenet_v2", 32
    config.model.backbone_options = ConfigDict({"expanded_features": True})
    options = {"depth": 4, "rates": (6, 12), "features": 128, "aspp_out": False, "align_corners": False, "dropout": 0.0}
    config.model.options = ConfigDict(options)
    return publish(config, "VOC 2012, 20 validation images with grey masks, 5 epochs", PUBLISHED)
