"""SegNet on a backbone and a data set of one's choice: `segnet.py:BACKBONE,DATA`, by default `vgg16_bn,camvid`.

    python -m jaxseg.main --config=configs/segnet.py
    python -m jaxseg.main --config=configs/segnet.py:basic,camvid

BACKBONE is vgg16_bn, vgg16, or one of the two smaller networks with an encoder of their own: basic (SegNet-Basic) and
constant (40 channels everywhere). The protocol of `default.for_data`, on CamVid with the weights of classes that
SegNet's authors publish; it was not run in full yet, so no score stands here.
"""

from configs import default


def get_config(argument: str = ""):
    config = default.for_data("segnet", argument, ("vgg16_bn", "camvid"))
    if config.data.name == "camvid":
        config.loss.class_weights = "median_frequency"
    return config
