"""Project A's FPN on MobileNet v1, CamVid with 12 classes at 224x224.

With `mobilenet_v2` as its argument it is SMP's FPN on that backbone, a ninth of its multiply-adds.

    python -m jaxseg.main --config=configs/reproduce/a_fpn_mobilenet.py --config.data.dir=CAMVID \\
        --config.model.weights=FILE
    python -m jaxseg.main --config=configs/reproduce/a_fpn_mobilenet.py:mobilenet_v2 --config.data.dir=CAMVID
    python -m jaxseg.main --config=configs/reproduce/a_fpn_mobilenet.py:as_published --config.data.dir=CAMVID \\
        --config.model.weights=FILE

FILE holds Keras' weights of MobileNet v1, which the hub has not; '' starts from scratch.

Source: NabeelEhsan/Semantic-Segmentation, commit 7a442de. Setting: `reproduce.project_a`. Both forms take six samples
of an image, two of them the image itself. `as_published` normalises as for VGG16, whatever the network.

Published, on the 101 images of CamVid's val split: accuracy 0.8926, and from the correctly paired pass micro IoU
0.8069; see `a_unet_vgg16.py` for the figures that mean nothing.

Ours, `mobilenet_v2` started from ImageNet weights (an 8-bit model's, widened): accuracy 0.9014, micro IoU 0.8205, mean
IoU 0.5726, F1 0.6664, seed 0; half an hour of steps on two CPU cores that did other work too. MobileNet v1 from
scratch: accuracy 0.8493, micro IoU 0.7381, mean IoU 0.4294, F1 0.5082, seed 0, still rising; 2 h 40 min of steps.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_a, publish, start

PUBLISHED = {"pixel_accuracy": 0.8926, "micro_iou": 0.8069}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published", "mobilenet_v2")
    project_a(config, "as_published" in words)
    config.model.name = "fpn"
    if "mobilenet_v2" in words:
        config.model.backbone, config.model.options = "mobilenet_v2", ConfigDict({"merge": "cat"})
    else:
        # The form of Keras' segmentation_models: a level more than SMP's, BatchNorm, two convolutions a level.
        options = {"merge": "cat", "finest": 1, "norm": "batch", "convs": 2, "upsampling": "nearest"}
        options |= {"conv_head": True, "align_corners": False, "dropout": 0.0}
        config.model.backbone, config.model.options = "mobilenet_v1", ConfigDict(options)
    return publish(config, "CamVid val, 224x224, 12 classes, 4 epochs, MobileNet v1", PUBLISHED)
