"""Project A's "FCN": U-Net on VGG16, CamVid with 12 classes at 224x224.

    python -m jaxseg.main --config=configs/reproduce/a_unet_vgg16.py --config.data.dir=CAMVID
    python -m jaxseg.main --config=configs/reproduce/a_unet_vgg16.py:as_published --config.data.dir=CAMVID

Source: NabeelEhsan/Semantic-Segmentation, commit 7a442de. Setting: `reproduce.project_a`. The project calls
`Unet('vgg16')` of the Keras library segmentation_models an FCN. Both forms take six samples of an image, two of them
the image itself. `as_published` normalises as for VGG16, whatever the network.

Published, on the 101 images of CamVid's val split: accuracy 0.8492, and from the correctly paired pass micro IoU
0.7383. The project's own table has 0.5157, F1 0.3119 and "Dice" 0.6881 in their place, from predictions that were
compared with the masks of other images; they mean nothing and are not repeated.

Ours, from scratch: accuracy 0.8526, micro IoU 0.7430, mean IoU 0.4019, F1 0.4653 at the best of its steps by mean IoU,
825 of 1,101, seed 0; 1 h 50 min of steps on two CPU cores that did other work too.
"""

from configs.reproduce import project_a, publish, start

PUBLISHED = {"pixel_accuracy": 0.8492, "micro_iou": 0.7383}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published")
    project_a(config, "as_published" in words)
    config.model.name, config.model.backbone = "unet", "vgg16"
    return publish(config, "CamVid val, 224x224, 12 classes, 4 epochs", PUBLISHED)
