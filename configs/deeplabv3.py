"""DeepLabV3 on a backbone and a data set of one's choice: `deeplabv3.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/deeplabv3.py
    python -m jaxseg.main --config=configs/deeplabv3.py:mobilenet_v2,camvid

At output stride 8 and with an auxiliary head; the protocol of `default.for_data`. On VOC it was not run in full yet, so
no score stands here.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(argument: str = ""):
    config = default.for_data("deeplabv3", argument, ("resnet50", "voc"))
    config.model.options = ConfigDict({"aux_head": True})
    return config
