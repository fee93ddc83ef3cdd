"""FCN on a backbone and a data set of one's choice: `fcn.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/fcn.py
    python -m jaxseg.main --config=configs/fcn.py:mobilenet_v2,camvid
    python -m jaxseg.main --config=configs/fcn.py:vgg16,voc --config.model.options.stride=16

At output stride 8, with the auxiliary head that torchvision trains with; on VGG-16 the papers' FCN-8s, all at once.
The protocol of `default.for_data`. On VOC it was not run in full yet, so no score stands here.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(argument: str = ""):
    config = default.for_data("fcn", argument, ("resnet50", "voc"))
    vgg = config.model.backbone.startswith("vgg")
    config.model.options = ConfigDict({"stride": 8, "at_once": True} if vgg else {"aux_head": True})
    return config
