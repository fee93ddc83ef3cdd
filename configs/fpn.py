"""Semantic FPN on a backbone and a data set of one's choice: `fpn.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/fpn.py
    python -m jaxseg.main --config=configs/fpn.py:mobilenet_v2,camvid

The protocol of `default.for_data`. On VOC it was not run in full yet, so no score stands here.
"""

from configs import default


def get_config(argument: str = ""):
    return default.for_data("fpn", argument, ("resnet50", "voc"))
