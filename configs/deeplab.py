"""DeepLabV3+ on a backbone and a data set of one's choice: `deeplab.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/deeplab.py
    python -m jaxseg.main --config=configs/deeplab.py:mobilenet_v2,camvid

At output stride 16 and without an auxiliary head; the protocol of `default.for_data`. On VOC it was not run in full
yet, so no score stands here.
"""

from configs import default


def get_config(argument: str = ""):
    return default.for_data("deeplabv3plus", argument, ("resnet50", "voc"))
