"""Project E's U-Net on MobileNetV2 with pix2pix upsampling blocks, VOC 2012 split anew.

    python -m jaxseg.main --config=configs/reproduce/e_unet_mobilenetv2.py

Source: smunjewar/Image_Segmentation, commit 70fc18e. Setting: `reproduce.project_e`, the encoder frozen as in
TensorFlow's tutorial. Nothing of it is known to be wrong: `as_published` changes nothing.

Published: accuracy 0.8471 on the test split (slides; validation 0.7988, in the report 0.81). About 0.73 of VOC's
pixels are background: read it beside mean IoU.

Ours, on a subset of VOC dealt out by the same rule (74 training, 15 validation, 11 test images) from ImageNet weights,
seed 0, ended by its patience after 16 of 30 epochs, best after 12: accuracy 0.7493 and mean IoU 0.0549 on validation,
0.7629 and 0.0663 on test, over the classes that are there; 2 minutes of steps on two CPU cores that did other work too.
On all of VOC it was not run.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_e, publish, start

PUBLISHED = {"pixel_accuracy": 0.8471}


def get_config(argument: str = ""):
    config, _ = start(argument, "as_published")
    project_e(config)
    config.model.name, config.model.backbone = "unet_pix2pix", "mobilenet_v2"
    config.model.backbone_options = ConfigDict({"expanded_features": True})
    return publish(config, "VOC 2012 split anew, 300 test images, 224x224", PUBLISHED, split="test")
