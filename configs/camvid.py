"""CamVid, 11 classes, on MobileNetV2: `camvid.py:FAMILY`, by default `deeplabv3plus`: the README's scores are of it.

    python -m jaxseg.main --config=configs/camvid.py --config.data.dir=DIR --config.model.weights=WEIGHTS
    python -m jaxseg.main --config=configs/camvid.py:unet --config.data.dir=DIR --config.model.weights=WEIGHTS

367 training images, void ignored, the protocol of `default.for_data`. Scored at 480x360. About a quarter of an hour on
two CPU cores.
"""

from configs import default


def get_config(family: str = "deeplabv3plus"):
    return default.for_data(family, "", ("mobilenet_v2", "camvid"))
